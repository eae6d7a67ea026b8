"""Generated images: textured shapes over a textured background. NumPy and Pillow.

Objects hide each other; colours may be alike, so that texture and outline have to tell them apart;
lines and soft spots that are no objects lie between the background and the objects. Plain images
have none of that. Textures are integer arithmetic on a sine table, so an image does not depend on
the machine.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from supersam.config.data import SourceConfig, SyntheticConfig
from supersam.data.sources.annotated import AnnotatedImage, AnnotatedObject, Item
from supersam.data.sources.labelmap import label_objects

ELLIPSE, RECTANGLE, BLOB, RING = 1, 2, 3, 4
"""Categories of the objects."""
_MIN_VISIBLE_PX = 16
_STEPS = 256
_SINE = np.round(128 * np.sin(np.arange(_STEPS) * (2 * np.pi / _STEPS))).astype(np.int16)

_Ints = NDArray[np.int16]


def list_synthetic(config: SourceConfig) -> list[Item]:
    """All images of the generator, undrawn."""
    return [_item(config.synthetic, index) for index in range(config.synthetic.images)]


def read_synthetic(config: SourceConfig, item: Item) -> AnnotatedImage:
    """Draw one image."""
    pixels, labels, categories = draw_image(config.synthetic, item.detail)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    found = label_objects(labels, components=False, left_out={0})
    objects = [
        AnnotatedObject(runs, category=categories[label - 1])
        for label, runs in found
        if runs.area >= _MIN_VISIBLE_PX
    ]
    size = (config.synthetic.size_px, config.synthetic.size_px)
    return AnnotatedImage(item.name, file.getvalue(), size, objects)


def draw_image(
    config: SyntheticConfig, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
    """(S, S, 3) RGB, (S, S) object of each pixel from 1, 0 for none, and the objects' categories.

    Later objects lie over earlier ones, so the last is always whole.
    """
    if config.plain:
        return _draw_plain(config, index)
    rng = np.random.default_rng((config.seed, index))
    side = config.size_px
    colours = [rng.integers(40, 216, 3)]
    canvas = _texture(rng, side, side, colours[0])
    _add_distractors(rng, canvas)
    labels = np.zeros((side, side), np.uint8)
    categories: list[int] = []
    for label in range(1, _num_objects(rng, config) + 1):
        category, y, x, shape = _shape(rng, side)
        # Near the colour of something already there: colour alone does not give it away.
        near = colours[int(rng.integers(len(colours)))]
        colours.append(np.clip(near + rng.choice([-1, 1], 3) * rng.integers(12, 90, 3), 20, 235))
        place = np.s_[y : y + shape.shape[0], x : x + shape.shape[1]]
        texture = _texture(rng, shape.shape[0], shape.shape[1], colours[-1])
        np.copyto(canvas[place], texture, where=shape[..., None])
        np.copyto(labels[place], label, where=shape)
        categories.append(category)
    return np.clip(canvas, 0, 255).astype(np.uint8), labels, categories


def _draw_plain(
    config: SyntheticConfig, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
    """As `draw_image`: every object is a good deal brighter, or every one darker, than the rest."""
    rng = np.random.default_rng((config.seed, index))
    side = config.size_px
    sign = int(rng.choice([-1, 1]))
    ground = 128 - sign * rng.integers(40, 111, 3)
    canvas = _even(rng, side, side, ground)
    labels = np.zeros((side, side), np.uint8)
    categories: list[int] = []
    for label in range(1, _num_objects(rng, config) + 1):
        category, y, x, shape = _shape(rng, side, kinds=(ELLIPSE, BLOB))
        height, width = shape.shape
        place = np.s_[y : y + height, x : x + width]
        colour = np.clip(ground + sign * rng.integers(60, 181, 3), 15, 240)
        np.copyto(canvas[place], _even(rng, height, width, colour), where=shape[..., None])
        np.copyto(labels[place], label, where=shape)
        categories.append(category)
    return np.clip(canvas, 0, 255).astype(np.uint8), labels, categories


def _num_objects(rng: np.random.Generator, config: SyntheticConfig) -> int:
    return int(rng.integers(1, min(config.max_objects, 255) + 1))


def _item(config: SyntheticConfig, index: int) -> Item:
    num_bytes = config.size_px**2 * 3 // 4  # measured
    kind = "plain-" if config.plain else ""
    return Item(f"synthetic/{kind}seed{config.seed}/{index:08d}.jpg", num_bytes, index)


def _texture(rng: np.random.Generator, height: int, width: int, colour: NDArray[np.int64]) -> _Ints:
    """(height, width, 3): a colour with stripes or cells, and noise."""
    wave = _wave(rng, height, width)
    if rng.integers(2):
        wave = (wave * _wave(rng, height, width)) >> 7
    tint = rng.integers(-40, 41, 3, np.int16)
    strength = int(rng.integers(1, 9))
    texture: _Ints = (wave[..., None] * tint) >> 7
    texture += rng.integers(-strength, strength + 1, (height, width, 1), np.int16)
    texture += colour.astype(np.int16)
    return texture


def _even(rng: np.random.Generator, height: int, width: int, colour: NDArray[np.int64]) -> _Ints:
    """(height, width, 3): a colour with noise."""
    strength = int(rng.integers(1, 9))
    noise = rng.integers(-strength, strength + 1, (height, width, 1), np.int16)
    even: _Ints = noise + colour.astype(np.int16)
    return even


def _wave(rng: np.random.Generator, height: int, width: int) -> _Ints:
    """(height, width) in -128..128: a plane wave, 6 pixels long or longer."""
    start, per_y, per_x = rng.integers(0, [16 * _STEPS, 1001, 1001]) - [0, 500, 500]
    # Sixteenths of a step, modulo 2^16: a multiple of the wave's length.
    down = (start + per_y * np.arange(height)).astype(np.uint16)
    right = (per_x * np.arange(width)).astype(np.uint16)
    phase = (down[:, None] + right) >> 4
    wave: _Ints = _SINE[phase.astype(np.uint8)]
    return wave


def _shape(
    rng: np.random.Generator, side: int, kinds: tuple[int, ...] = (ELLIPSE, RECTANGLE, BLOB, RING)
) -> tuple[int, int, int, NDArray[np.bool_]]:
    """(category, top, left, pixels) of a random shape, its centre in the image."""
    centre_y, centre_x = rng.integers(0, side, 2).tolist()
    radii = rng.integers(max(side // 16, 3), max(side // 5, 4) + 1, 2)
    reach = int(1.5 * radii.max()) + 1
    top, left = max(centre_y - reach, 0), max(centre_x - reach, 0)
    y = np.arange(top, min(centre_y + reach + 1, side))[:, None] - centre_y
    x = np.arange(left, min(centre_x + reach + 1, side)) - centre_x
    angle = int(rng.integers(_STEPS))
    cosine, sine = _SINE[(angle + _STEPS // 4) % _STEPS] / 128, _SINE[angle] / 128
    u, v = (cosine * x + sine * y) / radii[0], (cosine * y - sine * x) / radii[1]
    category = kinds[int(rng.integers(len(kinds)))]
    return category, top, left, _inside(category, u, v, rng)


def _inside(
    category: int, u: NDArray[np.float64], v: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    square = u * u + v * v
    if category == RECTANGLE:
        return np.maximum(np.abs(u), np.abs(v)) < 0.85
    if category == BLOB:
        lobes, turn = int(rng.integers(2, 6)), float(rng.random())
        edge = 1 + 0.25 * np.sin(lobes * (np.arctan2(v, u) + turn))
        return square < edge * edge
    if category == RING:
        return (square < 1) & (square > 0.2)
    return square < 1


def _add_distractors(rng: np.random.Generator, canvas: _Ints) -> None:
    """Soft spots and thin lines, none of them an object."""
    side = len(canvas)
    for _ in range(int(rng.integers(4))):
        y, x = rng.integers(0, side, 2).tolist()
        reach = int(rng.integers(side // 8, side // 3 + 1))
        top, left = max(y - reach, 0), max(x - reach, 0)
        region = canvas[top : y + reach, left : x + reach]
        rows = np.arange(top, top + region.shape[0])[:, None] - y
        columns = np.arange(left, left + region.shape[1]) - x
        depth = np.maximum(reach * reach - rows * rows - columns * columns, 0)
        region += (depth * int(rng.integers(-70, 71)) // (reach * reach)).astype(np.int32)[
            ..., None
        ]
    for _ in range(int(rng.integers(6))):
        ends = rng.integers(0, side, (2, 2))
        steps = np.arange(2 * side)
        y, x = (ends[0][:, None] * (2 * side - steps) + ends[1][:, None] * steps) // (2 * side)
        canvas[y, x] = rng.integers(20, 236, 3)
