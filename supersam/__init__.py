"""SuperSAM: Segment Anything as a weight-sharing supernet."""

__all__ = ["__version__"]

__version__ = "0.1.0"
