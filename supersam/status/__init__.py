"""Where runs and searches stand, by what they left on disk and by Slurm; reads only."""
