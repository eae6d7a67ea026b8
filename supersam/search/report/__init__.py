"""A search as one page."""
