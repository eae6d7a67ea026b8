"""A stand-in of the published way to train a supernet, on segment-anything's modules.

What the published code (arXiv 2501.08504) does for each subnet of a step: copies of the whole
model, new attention and MLP modules filled with slices, a new AdamW, every image encoded once a
prompt, masks brought to the image's own size and compared one by one, an optimizer step an image,
and a write-back of the difference of two state dicts. The state is truly cloned here: the published
code's alias on a CPU would train nothing.
"""

import copy

import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention
from torch import nn

from supersam.model.decoder import decode_masks, embed_prompts

LR = 1e-5


class PublishedStep:
    """Copies for each subnet, an optimizer for each subnet, differences written back."""

    def __init__(self, sam, shape):
        self.sam = sam
        self.shape = shape

    def train_encoder(self, subnets, images, direction):
        """A step of the image encoder alone. direction: (B, 256, g, g) weights of the loss."""
        for spec in subnets:
            subnet = self.extract(spec)
            with WrittenBack(self.sam, subnet, spec) as optimizer:
                optimizer.zero_grad()
                (subnet.image_encoder(images) * direction).sum().backward()
                optimizer.step()

    def train(self, subnets, scenes):
        """A step of the whole model on `scenes`, an image with its encoded masks each."""
        for spec in subnets:
            subnet = self.extract(spec)
            with WrittenBack(self.sam, subnet, spec) as optimizer:
                optimizer.zero_grad()
                for scene in scenes:
                    image_loss(subnet, scene).backward()
                    optimizer.step()

    def extract(self, spec):
        """One copy for the largest subnet, two and new modules for the others."""
        subnet = copy.deepcopy(self.sam)
        if len(spec.layers) == self.shape.depth and set(spec.mlp_widths) == {self.shape.mlp_width}:
            return subnet
        subnet.image_encoder = copy.deepcopy(subnet.image_encoder)
        blocks = [subnet.image_encoder.blocks[layer] for layer in spec.layers]
        for block, layer, width in zip(blocks, spec.layers, spec.mlp_widths, strict=True):
            side = self.shape.window_of(layer) or self.shape.grid
            block.attn = Attention(
                self.shape.embed_dim,
                num_heads=self.shape.num_heads,
                use_rel_pos=True,
                input_size=(side, side),
            )
            block.mlp = MLPBlock(embedding_dim=self.shape.embed_dim, mlp_dim=width)
        subnet.image_encoder.blocks = nn.ModuleList(blocks)
        self.copy_weights(subnet.image_encoder, spec)
        return subnet

    def copy_weights(self, encoder, spec):
        """Fill `encoder` with the leading slices of the supernet's weights."""
        for name, _ in encoder.named_parameters():
            mine = dict(self.sam.image_encoder.named_parameters())[full_name(name, spec)]
            theirs = dict(encoder.named_parameters())[name]  # looked up anew, as published
            theirs.data.copy_(mine.data[slices(theirs)])


class WrittenBack:
    """Gives a new optimizer of `subnet`; at the end the supernet takes over what was learnt."""

    def __init__(self, sam, subnet, spec):
        self.sam, self.subnet, self.spec = sam, subnet, spec
        self.before = {name: tensor.clone() for name, tensor in subnet.state_dict().items()}

    def __enter__(self):
        return torch.optim.AdamW((p for p in self.subnet.parameters() if p.requires_grad), lr=LR)

    @torch.no_grad()
    def __exit__(self, *_):
        after = self.subnet.state_dict()
        for name, parameter in self.subnet.named_parameters():
            whole = self.sam.get_parameter(full_name(name, self.spec))
            whole[slices(parameter)] -= self.before[name] - after[name]


def image_loss(sam, scene):
    """The mean dice loss of one image's objects, at the image's own size."""
    count = len(scene.points)
    pixels = sam.preprocess(scene.image)[None].repeat(count, 1, 1, 1)  # one replica a prompt
    embedding = sam.image_encoder(pixels)
    tokens = embed_prompts(sam.prompt_encoder, scene.points, scene.labels)[:, None]
    masks, _ = decode_masks(sam.mask_decoder, sam.prompt_encoder, embedding, tokens)
    side = sam.image_encoder.img_size
    masks = F.interpolate(masks[:, 0, :1], (side, side), mode="bilinear")
    masks = F.interpolate(masks, scene.original_size, mode="bilinear")
    losses = []
    for logits, rle in zip(masks, scene.rles, strict=True):
        truth = torch.from_numpy(coco_mask.decode(rle)).float()
        shares = logits[0].sigmoid()
        overlap = 2 * (shares * truth).sum()
        losses.append(1 - overlap / (shares.square().sum() + truth.square().sum() + 1e-5))
    return torch.stack(losses).mean()


def full_name(name, spec):
    """The supernet's name of a subnet's parameter, with or without `image_encoder.` before it."""
    words = name.split(".")
    if "blocks" in words:
        place = words.index("blocks") + 1
        words[place] = str(spec.layers[int(words[place])])
    return ".".join(words)


def slices(tensor):
    return tuple(slice(size) for size in tensor.shape)
