"""Source folders in the layouts of public data sets, small and made of noise and rectangles."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SIZE = (40, 56)


def noise(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Write an image in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def encoded(pixels: np.ndarray, format: str, **options: object) -> bytes:
    """An image file in memory."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def rectangle(y: int, x: int, height: int, width: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) bool, true in the rectangle."""
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def compressed(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths as they stand in a JSON."""
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def listed(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths as they stand in a JSON."""
    flat = mask.T.ravel()
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def sa1b_record(masks: list[np.ndarray], size: tuple[int, int] = SIZE) -> dict:
    """The content of an SA-1B JSON."""
    return {
        "image": {"height": size[0], "width": size[1]},
        "annotations": [
            {
                "id": k,
                "segmentation": compressed(mask),
                "predicted_iou": 0.9 + k / 100,
                "stability_score": 0.8 + k / 100,
                "point_coords": [[float(np.argwhere(mask)[0][1]), float(np.argwhere(mask)[0][0])]],
            }
            for k, mask in enumerate(masks)
        ],
    }


def add_sa1b(folder: Path, stem: str, masks: list[np.ndarray], pixels: np.ndarray) -> None:
    """An image and its JSON."""
    save(folder / f"{stem}.jpg", pixels, quality=90)
    record = sa1b_record(masks, pixels.shape[:2])
    (folder / f"{stem}.json").write_text(json.dumps(record))


def make_sa1b(root: Path, count: int, *, split: str = "train") -> Path:
    """`count` images with two objects each."""
    for k in range(count):
        masks = [rectangle(2, 3, 8, 9), rectangle(20, 10 + k % 20, 15, 12)]
        add_sa1b(root / split, f"sa_{k:04d}", masks, noise(k))
    return root


def make_coco(root: Path, images: list[dict], annotations: list[dict], split: str = "val") -> Path:
    """A COCO folder; each image gets noise of its stated size."""
    for image in images:
        size = (image["height"], image["width"])
        save(root / split / image["file_name"], noise(image["id"], size))
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    record = {"images": images, "annotations": annotations, "categories": []}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))
    return root
