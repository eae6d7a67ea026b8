"""Write encoder and decoder as ONNX and compare them with PyTorch: the only door to onnx."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.utils.onnx import SamOnnxModel
from torch import Tensor

from supersam import __version__
from supersam.config import UserError
from supersam.data.sample import EvalImage
from supersam.evaluation import SamModelPredictor, mask_iou
from supersam.model import normalize_images
from supersam.standalone import DECODER_ONNX, ENCODER_ONNX

OPSET = 17
"""The first opset with layer normalisation as one operator; segment-anything uses it too."""
MIN_MASK_IOU = 0.999
MAX_IOU_ESTIMATE_ERROR = 1e-3


class ParityError(Exception):
    """The ONNX files predict something else than PyTorch."""


@dataclass(frozen=True)
class Parity:
    """How far the ONNX files, run by onnxruntime on a CPU, are from PyTorch."""

    images: int
    masks: int
    """Masks compared: four of each prompt, at the original resolution."""
    min_mask_iou: float
    """Smallest IoU of a mask with PyTorch's; at least `MIN_MASK_IOU`."""
    max_iou_estimate_error: float
    """Largest difference of an IoU estimate; at most `MAX_IOU_ESTIMATE_ERROR`."""
    max_embedding_error: float
    """Largest difference of an image embedding's value."""
    opset: int = OPSET

    @property
    def holds(self) -> bool:
        """Whether every difference is a number within its tolerance."""
        return (
            self.min_mask_iou >= MIN_MASK_IOU
            and self.max_iou_estimate_error <= MAX_IOU_ESTIMATE_ERROR
            and math.isfinite(self.max_embedding_error)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the tolerances too."""
        tolerances = {"mask_iou": MIN_MASK_IOU, "iou_estimate_error": MAX_IOU_ESTIMATE_ERROR}
        return {**asdict(self), "tolerances": tolerances}


def require_onnx() -> None:
    """Raise UserError where the libraries are not installed."""
    missing = [n for n in ("onnx", "onnxruntime") if importlib.util.find_spec(n) is None]
    if missing:
        raise UserError(
            f"--onnx needs {' and '.join(missing)}, which this Python lacks; install them: "
            "pip install 'supersam[onnx]'"
        )


def export_onnx(sam: Sam, folder: Path, images: Sequence[EvalImage]) -> Parity:
    """Write `encoder.onnx` and `decoder.onnx`, and compare them with `sam` on `images`.

    The encoder takes `images` (B, 3, S, S) float32, normalised and padded as `Sam.preprocess` does,
    and gives `image_embeddings`. The decoder has the inputs and outputs of segment-anything's own
    `SamOnnxModel`, with any number of prompts (rows of `point_coords`) of any number of points.

    Raises ParityError where they differ by more than the tolerances.
    """
    sam = sam.cpu()
    write_onnx(sam, folder)
    parity = compare(sam, folder, images)
    if not parity.holds:
        raise ParityError(
            f"the ONNX files differ from PyTorch: smallest mask IoU {parity.min_mask_iou:.6f} "
            f"(tolerance {MIN_MASK_IOU}), largest error of an IoU estimate "
            f"{parity.max_iou_estimate_error:.2g} (tolerance {MAX_IOU_ESTIMATE_ERROR:g}), of an "
            f"embedding {parity.max_embedding_error:.2g}"
        )
    return parity


def write_onnx(sam: Sam, folder: Path) -> None:
    """Write `encoder.onnx` and `decoder.onnx` of `sam`, which is on the CPU."""
    _write_encoder(sam, folder / ENCODER_ONNX)
    _write_decoder(sam, folder / DECODER_ONNX)


def compare(sam: Sam, folder: Path, images: Sequence[EvalImage]) -> Parity:
    """The ONNX files of `folder` against `sam` on every prompt of `images`."""
    import onnxruntime

    sessions = [
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for name in (ENCODER_ONNX, DECODER_ONNX)
    ]
    ious: list[Tensor] = []
    estimate_errors: list[Tensor] = []
    embedding_errors: list[Tensor] = []
    for image in images:
        embedding, masks, estimates = _run(sam, image, *sessions)
        expected_embedding, expected_masks, expected_estimates = _reference(sam, image)
        ious.append(_agreement(masks, expected_masks).flatten())
        estimate_errors.append((estimates - expected_estimates).abs().max())
        embedding_errors.append((embedding - expected_embedding).abs().max())
    every = torch.cat(ious)
    return Parity(
        images=len(images),
        masks=len(every),
        min_mask_iou=float(every.min()),
        max_iou_estimate_error=float(torch.stack(estimate_errors).max()),
        max_embedding_error=float(torch.stack(embedding_errors).max()),
    )


def _agreement(logits: Tensor, expected: Tensor) -> Tensor:
    """(P, 4) IoU of the masks of (P, 4, H, W) logits; NaN for a mask with such a logit."""
    iou = mask_iou(logits > 0, expected > 0)
    return iou.masked_fill(logits.amax((-2, -1)).isnan(), math.nan)


class _Decoder(SamOnnxModel):  # type: ignore[misc]  # segment-anything is untyped
    """segment-anything's own, cropping at the size it is given.

    The published version turns the size of the first image into a constant of the file.
    """

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """masks: (P, 4, s, s). orig_im_size: (2,), (H, W). Returns (P, 4, H, W) logits."""
        square = (self.img_size, self.img_size)
        masks = F.interpolate(masks, size=square, mode="bilinear", align_corners=False)
        inside = self.resize_longest_image_size(orig_im_size, self.img_size)
        masks = masks[..., : inside[0], : inside[1]]  # tensors, so that the crop stays variable
        height, width = orig_im_size.to(torch.int64)
        return F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)


def _write_encoder(sam: Sam, path: Path) -> None:
    side = sam.image_encoder.img_size
    _export(
        sam.image_encoder,
        {"images": torch.zeros(2, 3, side, side)},
        path,
        outputs=["image_embeddings"],
        dynamic={"images": {0: "batch"}, "image_embeddings": {0: "batch"}},
        properties=_properties(sam, "image encoder"),
    )


def _write_decoder(sam: Sam, path: Path) -> None:
    side = 4 * sam.prompt_encoder.image_embedding_size[0]
    channels, grid = sam.prompt_encoder.embed_dim, sam.prompt_encoder.image_embedding_size
    prompts = {0: "prompts", 1: "points"}
    _export(
        _Decoder(sam, return_single_mask=False),
        {
            "image_embeddings": torch.zeros(1, channels, *grid),
            "point_coords": torch.zeros(2, 3, 2),
            "point_labels": torch.ones(2, 3),
            "mask_input": torch.zeros(1, 1, side, side),
            "has_mask_input": torch.zeros(1),
            "orig_im_size": torch.tensor([24.0, 32.0]),
        },
        path,
        outputs=["masks", "iou_predictions", "low_res_masks"],
        dynamic={
            "point_coords": prompts,
            "point_labels": prompts,
            "masks": {0: "prompts", 2: "height", 3: "width"},
            "iou_predictions": {0: "prompts"},
            "low_res_masks": {0: "prompts"},
        },
        fixed={"masks": {1: 4}, "low_res_masks": {1: 4, 2: side, 3: side}},
        properties=_properties(sam, "prompt encoder and mask decoder"),
    )


def _properties(sam: Sam, part: str) -> dict[str, str]:
    """What a runtime must know of the file to feed it; also read by viewers."""
    side = sam.image_encoder.img_size
    return {
        "model_type": "segment-anything",
        "part": part,
        "produced_by": f"supersam {__version__}",
        "image_size": str(side),
        "pixel_mean": json.dumps(sam.pixel_mean.flatten().tolist()),
        "pixel_std": json.dumps(sam.pixel_std.flatten().tolist()),
        "preparation": f"RGB, longest side {side}, normalised, padded at the right and bottom",
        "mask_threshold": str(sam.mask_threshold),
    }


def _export(
    model: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    *,
    outputs: list[str],
    dynamic: Mapping[str, Mapping[int, str]],
    properties: Mapping[str, str],
    fixed: Mapping[str, Mapping[int, int]] | None = None,
) -> None:
    """Export by tracing: `torch.export` refuses segment-anything's crop at a variable size.

    dynamic: the names of the axes that may vary, by tensor and axis; fixed: the lengths of output
    axes that the tracer cannot tell; properties: the file's metadata.
    """
    import onnx

    with warnings.catch_warnings():
        # The tracer warns of every shape that becomes a constant; `compare` tells whether one does
        # that should not. PyTorch announces its other exporter.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: dict(axes) for name, axes in dynamic.items()},
            opset_version=OPSET,
            dynamo=False,
        )
    exported = onnx.load(path)
    onnx.helper.set_model_props(exported, dict(properties))
    for output in exported.graph.output:
        for axis, length in (fixed or {}).get(output.name, {}).items():
            output.type.tensor_type.shape.dim[axis].dim_value = length
    exported.graph.name = f"supersam {properties['part']}"
    onnx.save(exported, path)
    onnx.checker.check_model(str(path))


def _run(sam: Sam, image: EvalImage, encoder: Any, decoder: Any) -> tuple[Tensor, Tensor, Tensor]:
    (embedding,) = encoder.run(None, {"images": _pixels(sam, image).numpy()})
    grid = 4 * embedding.shape[-1]
    masks, estimates, _ = decoder.run(
        None,
        {
            "image_embeddings": embedding,
            "point_coords": image.points.numpy(),
            "point_labels": image.labels.numpy().astype(np.float32),
            "mask_input": np.zeros((1, 1, grid, grid), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(image.original_size, np.float32),
        },
    )
    return torch.from_numpy(embedding), torch.from_numpy(masks), torch.from_numpy(estimates)


@torch.no_grad()
def _reference(sam: Sam, image: EvalImage) -> tuple[Tensor, Tensor, Tensor]:
    embedding = sam.image_encoder(_pixels(sam, image))
    logits, estimates = SamModelPredictor(sam).predict(
        image.image[None], torch.tensor([image.size]), image.points[None], image.labels[None]
    )
    return (
        embedding,
        sam.postprocess_masks(logits[0], image.size, image.original_size),
        estimates[0],
    )


def _pixels(sam: Sam, image: EvalImage) -> Tensor:
    sizes = torch.tensor([image.size])
    return normalize_images(image.image[None], sizes, mean=sam.pixel_mean, std=sam.pixel_std)
