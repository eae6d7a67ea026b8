"""Sandwich-rule training."""
