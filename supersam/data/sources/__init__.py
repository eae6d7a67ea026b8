"""Public layouts of images and masks on disk, read as samples."""

from supersam.data.sources.annotated import BadInputError, Item, SourceError
from supersam.data.sources.layouts import list_items, read_samples
from supersam.data.sources.samples import Samples
from supersam.data.sources.synthetic import draw_sample

__all__ = [
    "BadInputError",
    "Item",
    "Samples",
    "SourceError",
    "draw_sample",
    "list_items",
    "read_samples",
]
