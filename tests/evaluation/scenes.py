"""Evaluation images with known answers, and predictors that give them."""

from types import SimpleNamespace

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor
from torch.nn import functional as F

from supersam.data.masks import ObjectMasks
from supersam.data.sample import (
    LABEL_BOX_MAX,
    LABEL_BOX_MIN,
    LABEL_FOREGROUND,
    LABEL_PAD,
    EvalImage,
)


def eval_image(masks: Tensor, *, side: int, size: tuple[int, int], sample_id: int) -> EvalImage:
    """An image of these (M, H, W) masks. Its first pixel and the pad points number it and them."""
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    image[:, size[0] :], image[:, :, size[1] :] = 0, 0
    image[0, 0, 0] = sample_id
    points = torch.zeros(len(masks), 2, 2)
    points[:, 0] = torch.rand(len(masks), 2) * torch.tensor([size[1], size[0]])
    points[:, 1, 0] = torch.arange(len(masks))
    return EvalImage(
        image=image,
        size=size,
        original_size=tuple(masks.shape[1:]),
        points=points,
        labels=torch.tensor([[LABEL_FOREGROUND, LABEL_PAD]] * len(masks)).reshape(-1, 2),
        masks=ObjectMasks.of(masks),
        boxes=torch.zeros(len(masks), 4),  # the evaluator measures the masks themselves
        sample_id=sample_id,
        source=sample_id,
        group=sample_id,
    )


class Replay:
    """A predictor that answers from a table: logits (M, 4, s, s), estimates (M, 4) by image."""

    def __init__(self, logits: dict[int, Tensor], estimates: dict[int, Tensor] | None = None):
        self.logits = logits
        self.estimates = estimates or {key: torch.ones(len(v), 4) for key, v in logits.items()}
        self.prompts_of_calls: list[int] = []

    def predict(
        self, images: Tensor, sizes: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        key, objects = int(images[0, 0, 0, 0]), points[0, :, 1, 0].long()
        self.prompts_of_calls.append(len(objects))
        return self.logits[key][objects][None], self.estimates[key][objects][None]


def smooth_logits(num_objects: int, *, cells: int, generator: torch.Generator) -> Tensor:
    """Blobs of all sizes, some none at all: (M, 4, cells, cells)."""
    coarse = torch.randn(num_objects, 4, 5, 5, generator=generator)
    level = torch.rand(num_objects, 1, 1, 1, generator=generator) * 3
    return F.interpolate(coarse, (cells, cells), mode="bicubic") - level


def sam_postprocess(
    logits: Tensor, *, side: int, size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """`Sam.postprocess_masks` itself. logits: (n, k, s, s). Returns (n, k, H, W)."""
    sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=side))
    return Sam.postprocess_masks(sam, logits, size, original_size)


def tiny_sam(side: int = 64, *, seed: int = 0) -> Sam:
    """segment-anything's SAM with two blocks and random weights large enough to draw shapes."""
    torch.manual_seed(seed)
    cells = side // 16
    sam = Sam(
        ImageEncoderViT(
            img_size=side, embed_dim=32, depth=2, num_heads=2, out_chans=32, qkv_bias=True,
            use_rel_pos=True, window_size=2, global_attn_indexes=(1,),
        ),
        PromptEncoder(32, (cells, cells), (side, side), mask_in_chans=4),
        MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=32, num_heads=2),
        ),
    )  # fmt: skip
    with torch.no_grad():
        for weight in sam.mask_decoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return sam.eval()


class SamPrompts:
    """SAM as a predictor: all four mask tokens, encoded prompts as its own predictor makes them."""

    def __init__(self, sam: Sam):
        self.sam = sam

    def predict(
        self, images: Tensor, sizes: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        height, width = sizes[0].tolist()
        embedding = self.sam.image_encoder(self.sam.preprocess(images[:, :, :height, :width]))
        if labels[0, 0].tolist() == [LABEL_BOX_MIN, LABEL_BOX_MAX]:
            prompts = {"points": None, "boxes": points[0].flatten(1), "masks": None}
        else:
            prompts = {"points": (points[0, :, :1], labels[0, :, :1]), "boxes": None, "masks": None}
        sparse, dense = self.sam.prompt_encoder(**prompts)
        logits, estimates = self.sam.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        return logits[None], estimates[None]
