"""An exported SuperSAM subnet as a plain segment-anything model.

Needs torch, segment-anything and safetensors, and nothing of the rest of SuperSAM. Each exported
folder carries a copy of this file as `load.py`:

    import sys
    sys.path.insert(0, "FOLDER")
    from load import load_subnet
    predictor = segment_anything.SamPredictor(load_subnet())

`python FOLDER/load.py` checks the folder and says what it holds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention
from torch import nn

FORMAT = 1
MANIFEST = "MANIFEST.json"
"""SHA-256 of every other file; written last."""
CONFIG = "config.json"
"""What it is, and the sizes of the model."""
WEIGHTS = "model.safetensors"
"""Its weights, under segment-anything's names."""
LOADER = "load.py"
"""A copy of this file."""
SPEC = "spec.json"
"""The subnet as a slice of its supernet, as launch scripts read it."""
CARD_JSON, CARD = "card.json", "README.md"
"""Where it comes from and how good it is, for machines and for people."""
ENCODER_ONNX, DECODER_ONNX = "encoder.onnx", "decoder.onnx"
ENCODER_INT8_ONNX = "encoder_int8.onnx"
"""The image encoder in eight bits, in the place of `encoder.onnx`."""

NORM_EPS = 1e-6  # as segment-anything builds its encoders


@dataclass(frozen=True)
class LayerSizes:
    """One transformer layer of an image encoder."""

    mlp_width: int
    """MLP hidden units."""
    heads: int
    """Attention heads."""
    is_global: bool
    """Whether attention sees the whole image, or a window."""


@dataclass(frozen=True)
class SamSizes:
    """All that must be known, besides weights, to build a segment-anything model."""

    image_size: int
    """Side of the square input, pixels."""
    patch_px: int
    """Side of a patch, pixels."""
    window_size: int
    """Side of an attention window, patches."""
    embed_dim: int
    """Channels of the residual stream."""
    head_dim: int
    """Channels of one attention head."""
    neck_channels: int
    """Channels of the image embedding: the mask decoder's width."""
    layers: tuple[LayerSizes, ...]

    @property
    def grid(self) -> int:
        """Patches along one side of the input."""
        return self.image_size // self.patch_px

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamSizes:
        """The inverse of `to_dict`. Raises KeyError or TypeError on anything else."""
        return cls(**{**values, "layers": tuple(LayerSizes(**each) for each in values["layers"])})


def load_subnet(folder: Path | str = Path(__file__).parent, *, device: str = "cpu") -> Sam:
    """Load the exported model, a segment-anything `Sam` in evaluation mode.

    `SamPredictor` and `SamAutomaticMaskGenerator` accept it. Raises ValueError that names the file
    that is missing, changed, or of a newer format.
    """
    folder = Path(folder)
    _verify(folder, (CONFIG, WEIGHTS))
    config = _read_json(folder / CONFIG)
    try:
        sam = build_plain_sam(SamSizes.from_dict(config["sizes"]))
        sam.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, TypeError, RuntimeError, SafetensorError) as fault:
        raise ValueError(f"{folder} does not hold a subnet that can be built: {fault}") from fault
    return sam.to(device).requires_grad_(False).eval()


def build_plain_sam(sizes: SamSizes) -> Sam:
    """A `Sam` of `sizes`; weights are not initialised."""
    return Sam(
        build_encoder(sizes),
        build_prompt_encoder(sizes.image_size, sizes.grid, sizes.neck_channels),
        build_mask_decoder(sizes.neck_channels),
    )


def build_encoder(sizes: SamSizes) -> ImageEncoderViT:
    """segment-anything's image encoder with `sizes`; weights are not initialised."""
    encoder = ImageEncoderViT(
        img_size=sizes.image_size,
        patch_size=sizes.patch_px,
        embed_dim=sizes.embed_dim,
        depth=len(sizes.layers),
        num_heads=1,  # replaced below: segment-anything ties head size to the embedding width
        mlp_ratio=1.0,
        out_chans=sizes.neck_channels,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
        window_size=sizes.window_size,
        global_attn_indexes=tuple(i for i, layer in enumerate(sizes.layers) if layer.is_global),
    )
    for block, layer in zip(encoder.blocks, sizes.layers, strict=True):
        block.mlp = MLPBlock(embedding_dim=sizes.embed_dim, mlp_dim=layer.mlp_width)
        _resize_attention(block.attn, layer, sizes)
    return encoder


def build_prompt_encoder(image_size: int, grid: int, channels: int) -> PromptEncoder:
    """SAM's prompt encoder for square images of `image_size` pixels, `grid` patches a side."""
    return PromptEncoder(
        embed_dim=channels,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )


def build_mask_decoder(channels: int) -> MaskDecoder:
    """SAM's mask decoder; the same in every model."""
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8),
        transformer_dim=channels,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )


def _resize_attention(attention: Attention, layer: LayerSizes, sizes: SamSizes) -> None:
    inner, side = layer.heads * sizes.head_dim, sizes.grid if layer.is_global else sizes.window_size
    attention.num_heads = layer.heads
    attention.scale = sizes.head_dim**-0.5
    attention.qkv = nn.Linear(sizes.embed_dim, 3 * inner)
    attention.proj = nn.Linear(inner, sizes.embed_dim)
    attention.use_rel_pos = True
    attention.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, sizes.head_dim))
    attention.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, sizes.head_dim))


def read_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by the manifest. Raises ValueError if it is unreadable."""
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise ValueError(
            f"{folder / MANIFEST} has format {manifest.get('format')!r}; this software reads "
            f"{FORMAT}"
        )
    return dict(manifest["files"])


def _verify(folder: Path, names: tuple[str, ...]) -> None:
    files = read_files(folder)
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; copy the folder whole")
        if file_sha256(path) != files.get(name):
            raise ValueError(f"{path} is damaged: its content is not what was exported")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"{path} cannot be read, so this is not an exported subnet: {fault}"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object, so this is not an exported subnet")
    return values


def file_sha256(path: Path) -> str:
    """Hash a file's content: 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _describe(sam: Sam) -> str:
    encoder = sam.image_encoder
    params_m = sum(parameter.numel() for parameter in sam.parameters()) / 1e6
    return (
        f"a Segment Anything model of {params_m:.2f} M parameters, {len(encoder.blocks)} encoder "
        f"layers, images of {encoder.img_size} pixels a side; every file is as it was exported"
    )


if __name__ == "__main__":
    print(_describe(load_subnet()))
