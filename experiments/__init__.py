"""Questions of science, one module each: python -m experiments.subnet_table."""
