"""Slurm: its commands, our scripts, the supervisor in the batch step."""
