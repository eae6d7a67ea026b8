"""Where a run runs: this process, several local ones, or Slurm. `launcher` is the front door."""
