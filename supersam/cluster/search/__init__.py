"""A search as a Slurm job."""
