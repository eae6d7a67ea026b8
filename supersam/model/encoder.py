"""SAM's image encoder with elastic depth, heads, MLP widths and residual width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from supersam.model.attention import choose_kernel, reference_attention
from supersam.model.elastic import PLAIN_HALVES, ElasticBlock, Halves
from supersam.model.input_size import resize_positions
from supersam.space import EncoderShape, SubnetSpec


class ElasticImageEncoder(nn.Module):
    """One set of encoder weights; every subnet is a set of views of it."""

    def __init__(self, encoder: ImageEncoderViT, shape: EncoderShape, *, attention: str) -> None:
        """Takes over the embeddings and the neck of `encoder` and copies its layers."""
        super().__init__()
        self.shape = shape
        self.attention = attention
        self.choose_kernel = choose_kernel
        self.checkpointing = False
        """Whether training computes the activations inside each layer again instead of keeping."""
        self.training_halves = PLAIN_HALVES
        self.patch_embed: nn.Conv2d = encoder.patch_embed.proj
        self.pos_embed: nn.Parameter = encoder.pos_embed
        self.blocks = nn.ModuleList(ElasticBlock(shape, layer=i) for i in range(shape.depth))
        self.neck: nn.Sequential = encoder.neck
        for mine, theirs in zip(self.blocks, encoder.blocks, strict=True):
            state = theirs.state_dict()
            for name in ("attn.qkv.weight", "attn.qkv.bias"):
                state[name] = heads_first(state[name], shape.num_heads)
            mine.load_state_dict(state)

    def forward(self, x: Tensor, spec: SubnetSpec) -> Tensor:
        """x: (B, 3, S, S) normalised, of the resolution of `spec`.

        Returns the image embedding, (B, 256, S / 16, S / 16).
        """
        return self.project(self.run_layers(self.embed(x, spec.embed_dim), spec))

    def run_layers(
        self, x: Tensor, spec: SubnetSpec, first: int = 0, last: int | None = None
    ) -> Tensor:
        """The layers `first` to `last` (not included) that `spec` keeps, counted among those.

        x: (B, g, g, c). Returns the same shape.
        """
        genes = list(zip(spec.layers, spec.mlp_widths, spec.heads, strict=True))
        for layer, width, heads in genes[first:last]:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(
                    self._run_layer, x, layer, width, heads,
                    use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
            else:
                x = self._run_layer(x, layer, width, heads)
        return x

    def _run_layer(self, x: Tensor, layer: int, mlp_width: int, heads: int) -> Tensor:
        return self.feed(self.attend(x, layer, heads), layer, mlp_width)

    def embed(self, x: Tensor, dim: int) -> Tensor:
        """Patches with their positions. x: (B, 3, S, S) normalised. Returns (B, g, g, dim).

        At another grid than the model's own the positions are interpolated.
        """
        weight, bias = self.patch_embed.weight[:dim], self.patch_embed.bias
        assert bias is not None  # segment-anything's patch embedding has one
        if self.is_exact(x.device):
            x = F.conv2d(x, weight, bias[:dim], stride=self.patch_embed.stride)
            return x.permute(0, 2, 3, 1) + self.positions(x.shape[-1], dim)
        # The same as a matrix product: of 16 images an H200 spent 4.3 ms in the convolution.
        patch = self.patch_embed.kernel_size[0]
        grid = x.shape[-1] // patch
        patches = x.reshape(len(x), -1, grid, patch, grid, patch)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, g, g, 3 * p * p)
        return F.linear(patches, weight.flatten(1), bias[:dim]) + self.positions(grid, dim)

    def positions(self, grid: int, dim: int) -> Tensor:
        """Return the position embedding of a grid of `grid` patches a side, (1, g, g, dim)."""
        own = self.pos_embed[..., :dim]
        return own if grid == self.shape.grid else resize_positions(own, grid)

    def is_exact(self, device: torch.device) -> bool:
        """Whether segment-anything's own sequence of operations is computed, bit for bit."""
        return self.choose_kernel(self.attention, device) is reference_attention

    def attend(self, x: Tensor, layer: int, heads: int) -> Tensor:
        """The first half of a layer, attention. x: (B, g, g, c). Returns the same shape."""
        block = self.blocks[layer]
        assert isinstance(block, ElasticBlock)
        kernel = self.choose_kernel(self.attention, x.device)
        return self._halves().attend(block, x, heads=heads, kernel=kernel)

    def feed(self, x: Tensor, layer: int, mlp_width: int) -> Tensor:
        """The second half of a layer, the MLP. x: (B, g, g, c). Returns the same shape."""
        block = self.blocks[layer]
        assert isinstance(block, ElasticBlock)
        return self._halves().feed(block, x, mlp_width=mlp_width)

    def _halves(self) -> Halves:
        """Compiled halves while gradients are recorded: evaluation has batches of many sizes."""
        return self.training_halves if torch.is_grad_enabled() else PLAIN_HALVES

    def project(self, x: Tensor) -> Tensor:
        """The neck: (B, g, g, c) active channels to the image embedding, (B, 256, g, g)."""
        x = x.permute(0, 3, 1, 2)
        first, *rest = self.neck
        assert isinstance(first, nn.Conv2d)  # segment-anything's 1 x 1 projection
        x = F.conv2d(x, first.weight[:, : x.shape[1]])
        for module in rest:
            x = module(x)
        return x


def heads_first(rows: Tensor, heads: int) -> Tensor:
    """Reorder qkv rows from segment-anything's (3, heads, d) to (heads, 3, d)."""
    return rows.reshape(3, heads, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def qkv_first(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `heads_first`: rows (heads, 3, d) to segment-anything's (3, heads, d)."""
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
