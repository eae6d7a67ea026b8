"""How a subnet is judged."""
