"""Studies train variants of a config with several seeds, and report the scores with error bars."""
