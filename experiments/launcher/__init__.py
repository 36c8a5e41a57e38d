"""Studies: named variants times seeds, run by a local queue and reported with error bars."""
