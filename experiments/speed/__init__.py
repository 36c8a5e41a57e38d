"""How fast: ours and our peers', each beside what the machine can do."""
