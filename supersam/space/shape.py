"""The full-size image encoder as plain numbers, and SAM's published sizes. No weights, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from supersam.config import ModelConfig, UserError

PATCH_PX = 16
NECK_CHANNELS = 256
"""Channels of the image embedding: the mask decoder's width, the same in every SAM."""


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a SAM image encoder (a ViT with windowed and global attention)."""

    embed_dim: int
    """Channels of the residual stream."""
    depth: int
    """Transformer layers."""
    num_heads: int
    """Attention heads of each layer; `embed_dim` is a multiple of it."""
    global_layers: tuple[int, ...]
    """Layers whose attention sees the whole image; the others see windows."""
    image_size: int = 1024
    """Side of the square input, pixels; a multiple of 16."""
    window_size: int = 14
    """Side of an attention window, patches."""
    mlp_ratio: float = 4.0
    """MLP hidden units as a multiple of `embed_dim`."""

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads != 0:
            raise ValueError(
                f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}; "
                f"choose num_heads among the divisors of {self.embed_dim}"
            )
        if self.image_size % PATCH_PX != 0:
            nearest = max(PATCH_PX, round(self.image_size / PATCH_PX) * PATCH_PX)
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of {PATCH_PX}; try {nearest}"
            )
        outside = [layer for layer in self.global_layers if not 0 <= layer < self.depth]
        if outside:
            raise ValueError(
                f"global_layers {outside} do not exist in a depth of {self.depth}; "
                f"layers are numbered 0 to {self.depth - 1}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head; the same in every subnet."""
        return self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden units of a full MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def grid(self) -> int:
        """Patches along one side of the input."""
        return self.image_size // PATCH_PX

    def at(self, resolution: int | None) -> EncoderShape:
        """Return the same encoder for inputs of `resolution` pixels; None is its own size."""
        return self if resolution is None else replace(self, image_size=resolution)

    def misfit_of(self, resolution: int) -> str | None:
        """Say why no subnet can take inputs of `resolution` pixels; None where one can."""
        if type(resolution) is not int or resolution % PATCH_PX != 0:
            return f"{resolution!r} is not a multiple of {PATCH_PX}, the pixels of a patch"
        if resolution > self.image_size:
            return (
                f"{resolution} is larger than the model's own {self.image_size} px, the size that "
                f"images are loaded at; set --model.image-size {resolution}, to which the "
                "positions of given weights are interpolated"
            )
        side = 1 if len(self.global_layers) == self.depth else self.window_size
        least = min(side * PATCH_PX, self.image_size)
        if resolution < least:
            return (
                f"{resolution} is smaller than an attention window of {side} patches, to which it "
                f"would be padded; the least is {least}"
            )
        return None

    def window_of(self, layer: int) -> int:
        """Return the side of a layer's attention window in patches; 0 for global attention."""
        return 0 if layer in self.global_layers else self.window_size


SHAPES: dict[str, EncoderShape] = {
    "vit_t": EncoderShape(192, 12, 3, (2, 5, 8, 11), image_size=256, window_size=8),
    "vit_s": EncoderShape(384, 12, 6, (2, 5, 8, 11), image_size=256, window_size=8),
    "vit_b": EncoderShape(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": EncoderShape(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": EncoderShape(1280, 32, 16, (7, 15, 23, 31)),
}
"""T and S are this project's small models; B, L and H are Meta's."""


def resolve_shape(config: ModelConfig) -> EncoderShape:
    """Return the sizes of the named model, replaced by every size that `config` gives."""
    sizes = ("embed_dim", "depth", "num_heads", "global_layers", "image_size", "window_size")
    given = {name: value for name in sizes if (value := getattr(config, name)) is not None}
    try:
        if config.name in SHAPES:
            return replace(SHAPES[config.name], **given)
        missing = [name for name in sizes[:4] if name not in given]
        if missing:
            flags = ", ".join(f"--model.{name}".replace("_", "-") for name in missing)
            raise UserError(
                f"--model.name {config.name!r} is not one of {', '.join(SHAPES)}; choose one, or "
                f"also give {flags}"
            )
        return EncoderShape(**given)
    except ValueError as fault:
        raise UserError(f"model: {fault}") from fault


def describe_shape(shape: EncoderShape) -> ModelConfig:
    """Return the configuration from which `resolve_shape` makes `shape`."""
    named = [name for name, known in SHAPES.items() if known == shape]
    if named:
        return ModelConfig(name=named[0])
    return ModelConfig(
        name="custom",
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        global_layers=shape.global_layers,
        image_size=shape.image_size,
        window_size=shape.window_size,
    )
