"""What runs and searches tell of themselves; reads only."""
