"""A real Slurm cluster on one machine: each host in its own namespaces. Standard library only."""
