"""Small samples for the tests of shards: valid records around noise, nothing drawn."""

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from supersam.data.sample import MaskRecord, SegmentationSample
from supersam.data.shards import ShardWriter, write_manifest


def random_sample(number: int, *, num_masks: int | None = None) -> SegmentationSample:
    """A noise image with random rectangles as masks; `num_masks` None draws 0 to 5."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(8, 40, 2).tolist()
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    format = ("jpeg", "png")[number % 2]
    Image.fromarray(pixels).save(file, format)
    masks = rng.integers(0, 6) if num_masks is None else num_masks
    return SegmentationSample(
        id=zlib.crc32(b"%d" % number) << 31,
        name=f"Bilder/ä {number}.{format}",
        image=file.getvalue(),
        format=format,
        height=height,
        width=width,
        masks=tuple(random_mask(rng, height, width) for _ in range(masks)),
    )


def random_mask(rng: np.random.Generator, height: int, width: int) -> MaskRecord:
    """A random rectangle."""
    y, x = int(rng.integers(height - 2)), int(rng.integers(width - 2))
    h, w = int(rng.integers(1, height - y)), int(rng.integers(1, width - x))
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return MaskRecord(
        rle=coco.encode(mask)["counts"],
        area=h * w,
        bbox=(float(x), float(y), float(w), float(h)),
        point=(float(x), float(y)),
        category=int(rng.integers(-5, 100)),
        predicted_iou=float(rng.random(dtype=np.float32)),
        stability_score=float(rng.random(dtype=np.float32)),
    )


def write_shards(folder: Path, sizes: tuple[int, ...]) -> list[SegmentationSample]:
    """A finished folder with `sizes` images in its shards; returns what was written, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    samples, infos = [], []
    for k, size in enumerate(sizes):
        writer = ShardWriter(folder / f"shard-{k:06d}.h5", shard_index=k)
        for _ in range(size):
            samples.append(random_sample(len(samples)))
            writer.add(samples[-1])
        infos.append(writer.finish())
    write_manifest(folder, infos)
    return samples
