"""Random images and prompts as the model gets them, and segment-anything's answer to them."""

from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from supersam.data.sample import LABEL_BOX_MAX, LABEL_BOX_MIN, LABEL_FOREGROUND, LABEL_PAD


@dataclass(frozen=True)
class Scene:
    """Arguments of the supernet's forward, by their names there."""

    images: Tensor
    sizes: Tensor
    points: Tensor
    labels: Tensor

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.images, self.sizes, self.points, self.labels


def random_scene(side: int, *, images: int = 2, prompts: int = 3, seed: int = 0) -> Scene:
    """Noise images of several sizes in the padding; points and boxes in turn."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(side // 2, side + 1, (images, 2), generator=generator)
    sizes[:, 1] = side
    pixels = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=generator)
    for image, (height, width) in zip(pixels, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    corners = torch.rand(images, prompts, 2, 2, generator=generator) * (side - 1)
    points = corners.sort(dim=2).values
    labels = torch.tensor([LABEL_BOX_MIN, LABEL_BOX_MAX]).expand(images, prompts, 2).clone()
    labels[:, ::2] = torch.tensor([LABEL_FOREGROUND, LABEL_PAD])
    points[:, ::2, 1] = 0
    return Scene(pixels, sizes, points, labels)


def sam_embedding(sam: Sam, scene: Scene) -> Tensor:
    """The image embeddings of `Sam` itself, which normalises and pads each image."""
    cropped = [
        sam.preprocess(image[:, :height, :width].to(sam.pixel_mean.dtype))
        for image, (height, width) in zip(scene.images, scene.sizes.tolist(), strict=True)
    ]
    return sam.image_encoder(torch.stack(cropped))


def sam_prompt_tokens(
    sam: Sam, points: Tensor, labels: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`PromptEncoder` itself on prompts of one kind.

    points: (N, 2, 2). labels: (N, 2). masks: (N, 1, s, s).
    """
    if labels[0, 0] == LABEL_BOX_MIN:
        prompts = {"points": None, "boxes": points.flatten(1), "masks": masks}
    else:
        prompts = {"points": (points[:, :1], labels[:, :1]), "boxes": None, "masks": masks}
    return sam.prompt_encoder(**prompts)


def sam_masks(
    sam: Sam, embedding: Tensor, scene: Scene, shown: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`MaskDecoder` itself, image by image and prompt by prompt: (B, N, 4, s, s) and (B, N, 4).

    shown: (B, N, s, s) logits that are part of the prompts.
    """
    masks, ious = [], []
    for image in range(len(embedding)):
        for prompt in range(scene.points.shape[1]):
            tokens, dense = sam_prompt_tokens(
                sam,
                scene.points[image, prompt, None],
                scene.labels[image, prompt, None],
                None if shown is None else shown[image, prompt, None, None],
            )
            mask, iou = sam.mask_decoder.predict_masks(
                image_embeddings=embedding[image, None],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=tokens,
                dense_prompt_embeddings=dense,
            )
            masks.append(mask)
            ious.append(iou)
    shape = scene.points.shape[:2]
    return torch.cat(masks).unflatten(0, shape), torch.cat(ious).unflatten(0, shape)
