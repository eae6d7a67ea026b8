"""Public layouts of images and masks on disk, read as samples."""

from supersam.data.sources.annotated import BadInputError, Item, SourceError
from supersam.data.sources.layouts import list_items, read_samples
from supersam.data.sources.samples import Samples

__all__ = [
    "BadInputError",
    "Item",
    "Samples",
    "SourceError",
    "list_items",
    "read_samples",
]
