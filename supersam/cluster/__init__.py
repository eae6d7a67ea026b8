"""Where a run runs: this process, local processes, Slurm."""
