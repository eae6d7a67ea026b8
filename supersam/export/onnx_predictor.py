"""Run exported ONNX files by onnxruntime on a CPU, as a predictor that can be evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supersam.model import normalize_images
from supersam.standalone import DECODER_ONNX


def open_session(path: Path, *, threads: int | None = None) -> Any:
    """Open an ONNX file on the CPU. threads: of one operator; None takes what PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxPredictor:
    """Runs an encoder file and `decoder.onnx` of an exported folder; see `Predictor`."""

    def __init__(self, folder: Path, encoder: str) -> None:
        """encoder: the name of the encoder's file in `folder`."""
        import onnxruntime

        self._encoder = open_session(folder / encoder)
        self._decoder = open_session(folder / DECODER_ONNX)
        said = self._decoder.get_modelmeta().custom_metadata_map
        self._mean, self._std = (
            torch.tensor(json.loads(said[name])).view(3, 1, 1)
            for name in ("pixel_mean", "pixel_std")
        )
        self._quickly = onnxruntime.RunOptions()
        self._quickly.only_execute_path_to_fetches = True  # not the masks at the original size
        self._last: tuple[Tensor, Any] | None = None

    def predict(
        self, images: Tensor, sizes: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and IoU estimates of prompted images; see `Predictor`."""
        images, sizes, points, labels = (t.cpu() for t in (images, sizes, points, labels))
        embeddings = self._encode(images, sizes)
        found = [self._decode(*each) for each in zip(embeddings, points, labels, strict=True)]
        masks, estimates = (torch.stack(parts) for parts in zip(*found, strict=True))
        return masks, estimates

    def _encode(self, images: Tensor, sizes: Tensor) -> Any:
        """(B, 1, 256, g, g), kept for the next call with the same images."""
        if self._last is None or not torch.equal(self._last[0], images):
            pixels = normalize_images(images, sizes, mean=self._mean, std=self._std)
            (embedding,) = self._encoder.run(None, {"images": pixels.numpy()})
            self._last = images, embedding[:, None]
        return self._last[1]

    def _decode(self, embedding: Any, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 4, s, s) logits and (N, 4) estimates of N prompts on one image."""
        side = 4 * embedding.shape[-1]
        inputs = {
            "image_embeddings": embedding,
            "point_coords": points.numpy(),
            "point_labels": labels.numpy().astype(np.float32),
            "mask_input": np.zeros((1, 1, side, side), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([side, side], np.float32),
        }
        names = ["low_res_masks", "iou_predictions"]
        masks, estimates = self._decoder.run(names, inputs, self._quickly)
        return torch.from_numpy(masks), torch.from_numpy(estimates)
