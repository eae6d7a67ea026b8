"""Each kind of source as two functions: list the inputs, cheaply; read one of them, anywhere."""

from __future__ import annotations

from collections.abc import Callable

from supersam.config.data import SourceConfig, SourceKind
from supersam.data.sources.annotated import AnnotatedImage, BadInputError, Item, SourceError
from supersam.data.sources.coco import list_coco, read_coco
from supersam.data.sources.labelmap import list_labelmap, read_labelmap
from supersam.data.sources.sa1b import list_sa1b, read_sa1b
from supersam.data.sources.samples import Samples, make_samples
from supersam.data.sources.synthetic import list_synthetic, read_synthetic
from supersam.data.sources.tiff import list_tiff, read_tiff

_List = Callable[[SourceConfig], list[Item]]
_Read = Callable[[SourceConfig, Item], AnnotatedImage]
_LAYOUTS: dict[SourceKind, tuple[_List, _Read]] = {
    "sa1b": (list_sa1b, read_sa1b),
    "coco": (list_coco, read_coco),
    "labelmap": (list_labelmap, read_labelmap),
    "tiff": (list_tiff, read_tiff),
    "synthetic": (list_synthetic, read_synthetic),
}


def list_items(config: SourceConfig) -> list[Item]:
    """The inputs of a source in the order of their names. Raises SourceError."""
    items = _LAYOUTS[config.kind][0](config)
    if len(items) == 0:
        raise SourceError(
            f"no images of kind {config.kind!r} in {config.root}, split {config.split!r}; "
            "--source names another layout, --split another split"
        )
    return items


def read_samples(config: SourceConfig, item: Item) -> Samples:
    """Read, check and cut one input. Raises BadInputError."""
    if item.fault is not None:
        raise BadInputError(f"{item.name}: {item.fault}")
    try:
        return make_samples(_LAYOUTS[config.kind][1](config, item), config)
    except BadInputError as error:
        raise BadInputError(f"{item.name}: {error}") from error
