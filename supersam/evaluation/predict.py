"""What `supersam predict` does: masks of one image as a picture and as COCO JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import coco_encode_rle, mask_to_rle_pytorch

from supersam.config import UserError
from supersam.config.files import SPACE_FILE
from supersam.config.predict import PredictRun
from supersam.data.images import BadImageError, decode_rgb, encode_png
from supersam.evaluation.picture import PredictedMask, draw_masks
from supersam.model import extract_subnet
from supersam.runs.subnet_reference import find_subnet
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights, read_run
from supersam.runtime.atomic import write_bytes, write_json
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World, share_cores
from supersam.runtime.logging import setup_logging
from supersam.runtime.next_command import next_line
from supersam.runtime.table import count
from supersam.space import read_space, resolve_shape
from supersam.standalone import load_subnet

logger = logging.getLogger(__name__)


def run_predict(options: PredictRun) -> int:
    """Segment the image, write the picture and the JSON. Returns the exit code."""
    setup_logging(World.single())
    share_cores(options.threads, World.single())
    pixels = _read_image(options.image)
    _require_inside(options, pixels)
    sam = _load_model(options).to(choose_device(options.device))
    found = _find_all(sam, pixels, options) if options.auto else _prompted(sam, pixels, options)
    record = options.out.with_suffix(".json")
    write_json(record, coco_record(options.image.name, pixels, found))
    write_bytes(options.out, encode_png(draw_masks(pixels, found)))
    print(f"{count(len(found), 'mask')}: picture {options.out}, COCO JSON {record}")
    print(_next_line(options, found), flush=True)
    return 0


def _next_line(options: PredictRun, found: list[PredictedMask]) -> str:
    """Return the command that shows more of the image with the same model."""
    words: list[object] = [options.image, "--export", options.export]
    if options.run is not None:
        words = [options.image, "--run", options.run, "--subnet", options.subnet]
    if not options.auto:
        words += ["--auto"]
    elif found:
        x, y, width, height = _bounds(max(found, key=lambda each: each.score).mask)
        words += ["--box", f"{x},{y},{x + width},{y + height}"]
    else:  # lower limits let some through
        words += ["--auto", "--min-iou", f"{max(0.0, options.min_iou - 0.2):.2g}"]
        words += ["--min-stability", f"{max(0.0, options.min_stability - 0.2):.2g}"]
    return next_line("predict", *words, "--out", options.out)


def coco_record(name: str, pixels: NDArray[np.uint8], found: list[PredictedMask]) -> dict[str, Any]:
    """The masks as a COCO data set of one image, with compressed run lengths."""
    height, width = pixels.shape[:2]
    image = {"id": 1, "file_name": name, "height": height, "width": width}
    return {
        "images": [image],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [_annotation(number, each) for number, each in enumerate(found, start=1)],
    }


def _read_image(path: Path) -> NDArray[np.uint8]:
    try:
        return decode_rgb(path.read_bytes())
    except (OSError, BadImageError) as fault:
        raise UserError(f"{path} cannot be read as an image: {fault}") from None


def _require_inside(options: PredictRun, pixels: NDArray[np.uint8]) -> None:
    height, width = pixels.shape[:2]
    for flag, prompts in (("--box", options.boxes), ("--point", options.points)):
        for prompt in prompts:
            if max(prompt[::2]) > width or max(prompt[1::2]) > height:
                raise UserError(
                    f"{flag} {','.join(f'{part:g}' for part in prompt)} reaches beyond the image, "
                    f"which is {width} px wide and {height} px high"
                )


def _load_model(options: PredictRun) -> Sam:
    if options.export is not None:
        try:
            return load_subnet(options.export)
        except ValueError as fault:
            raise UserError(str(fault)) from None
    assert options.run is not None  # the configuration promises it
    run = read_run(options.run)
    space = read_space(options.run / SPACE_FILE, resolve_shape(run.model))
    spec = find_subnet(options.subnet, space, run=options.run)
    supernet = load_supernet(run, space, find_weights(run, options.checkpoint))
    return extract_subnet(supernet, spec)


def _prompted(sam: Sam, pixels: NDArray[np.uint8], options: PredictRun) -> list[PredictedMask]:
    predictor = SamPredictor(sam)
    predictor.set_image(pixels)
    found = []
    for box in options.boxes:
        masks, scores, _ = predictor.predict(box=np.array(box), multimask_output=False)
        found.append(PredictedMask(masks[0], float(scores[0]), box=box))
    for point in options.points:
        masks, scores, _ = predictor.predict(np.array([point]), np.array([1]))
        best = int(scores.argmax())
        found.append(PredictedMask(masks[best], float(scores[best]), point=point))
    return found


def _find_all(sam: Sam, pixels: NDArray[np.uint8], options: PredictRun) -> list[PredictedMask]:
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=options.points_per_side,
        pred_iou_thresh=options.min_iou,
        stability_score_thresh=options.min_stability,
    )
    return [
        PredictedMask(
            each["segmentation"], float(each["predicted_iou"]), point=tuple(each["point_coords"][0])
        )
        for each in generator.generate(pixels)
    ]


def _annotation(number: int, found: PredictedMask) -> dict[str, Any]:
    rle = mask_to_rle_pytorch(torch.from_numpy(found.mask)[None])[0]
    return {
        "id": number,
        "image_id": 1,
        "category_id": 1,
        "segmentation": coco_encode_rle(rle),
        "area": int(found.mask.sum()),
        "bbox": list(_bounds(found.mask)),
        "iscrowd": 0,
        "score": round(found.score, 4),
        "prompt": {"box": found.box, "point": found.point},
    }


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the tight box of a mask as COCO has it: x, y, width, height; zeros where empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
