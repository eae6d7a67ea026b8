"""Stand-ins of the published ways to train a supernet and to search it, on segment-anything.

`PublishedStep` does what the published code (arXiv 2501.08504) does for each subnet of a step:
copies of the whole model, new attention and MLP modules filled with slices, a new AdamW, every
image encoded once per prompt, masks brought to the image's own size and compared one by one, an
optimizer step per image, and a write-back of the difference of two state dicts. The state is truly
cloned here: the published code's alias on a CPU would train nothing.

`PublishedSearch` does what it does for each subnet that a search proposes: copies of the whole
model and new modules filled with slices; every image and its JSON read from disk again, in this
process; each annotated mask decoded and scanned for a box and a point; in float32 and two at a time
the images encoded, once each (it replicates an image for each prompt in training alone); three
masks a prompt brought to the original size, put through a sigmoid, and compared with the mask,
which is decoded once more, one by one on the CPU; the best of three counts. Left out, so kinder
than the original: its image processor of another library, DataParallel, moving the model to the
device and back, and as many objects of an image as it has.
"""

import copy
import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from supersam.model.decoder import decode_masks, embed_prompts

LR = 1e-5
BATCH = 2
JITTER_PX = 20


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


class PublishedSearch:
    """Evaluates subnets of `sam` on images in SA-1B's layout, up to `objects` of each."""

    def __init__(self, sam, shape, files, *, prompt, objects):
        self.step = PublishedStep(sam, shape)
        self.files, self.prompt, self.objects = files, prompt, objects
        self.rng = np.random.default_rng(0)

    @torch.no_grad()
    def evaluate(self, spec):
        """The mean over objects of the best IoU of three masks."""
        sam = self.step.extract(spec).eval()
        ious = []
        for first in range(0, len(self.files), BATCH):
            read = [self.read(path, sam) for path in self.files[first : first + BATCH]]
            predicted = sam([inputs for inputs, _ in read], multimask_output=True)
            for (_, annotations), outputs in zip(read, predicted, strict=True):
                ious += [
                    best_iou(*pair) for pair in zip(outputs["masks"], annotations, strict=True)
                ]
        return float(torch.tensor(ious).mean())

    def read(self, path, sam):
        """An image, resized, with the prompts of its objects; and their annotations."""
        image = np.array(Image.open(path).convert("RGB"))
        annotations = json.loads(path.with_suffix(".json").read_bytes())["annotations"]
        boxes, points = [], []
        for annotation in annotations:
            mask = coco_mask.decode(annotation["segmentation"])
            boxes.append(self.jittered_box(mask))
            points.append(self.point_in(mask, boxes[-1]))
        some = [i * len(boxes) // self.objects for i in range(self.objects)]
        some = some if len(boxes) > self.objects else range(len(boxes))
        resize = ResizeLongestSide(sam.image_encoder.img_size)
        size = image.shape[:2]
        inputs = {
            "image": torch.from_numpy(resize.apply_image(image)).permute(2, 0, 1).contiguous(),
            "original_size": size,
        }
        if self.prompt == "box":
            chosen = torch.tensor([boxes[i] for i in some], dtype=torch.float32)
            inputs["boxes"] = resize.apply_boxes_torch(chosen, size)
        else:
            chosen = torch.tensor([[points[i]] for i in some], dtype=torch.float32)
            inputs["point_coords"] = resize.apply_coords_torch(chosen, size)
            inputs["point_labels"] = torch.ones(len(chosen), 1)
        return inputs, [annotations[i] for i in some]

    def jittered_box(self, mask):
        """(x0, y0, x1, y1), each side pushed outwards."""
        rows, columns = np.where(mask > 0)
        height, width = mask.shape
        pushed = self.rng.integers(JITTER_PX, size=4)
        return [
            max(0, columns.min() - pushed[0]),
            max(0, rows.min() - pushed[1]),
            min(width, columns.max() + pushed[2] + 1),
            min(height, rows.max() + pushed[3] + 1),
        ]

    def point_in(self, mask, box):
        """Drawn in the box until it hits the mask."""
        while True:
            x, y = self.rng.integers(box[:2], box[2:])
            if mask[y, x]:
                return [x, y]


def best_iou(masks, annotation):
    """masks: (3, H, W) bool."""
    shares = [torch.sigmoid(mask.float()) > 0.5 for mask in masks]
    target = torch.from_numpy(coco_mask.decode(annotation["segmentation"]))
    return max(iou(mask, target) for mask in shares)


def iou(mask, target):
    overlap = torch.logical_and(mask, target).sum().float()
    union = torch.logical_or(mask, target).sum().float()
    return overlap / union if union > 0 else torch.tensor(0.0)
