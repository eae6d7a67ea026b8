"""A stand-in of the published way to evaluate a subnet in a search, on segment-anything's modules.

What the published code (arXiv 2501.08504) does for each subnet that is proposed: copies of the
whole model and new modules filled with slices; every image and its JSON read from disk again, in
this process; each annotated mask decoded and scanned for a box and a point; in float32 and two at a
time the images encoded, once each (it replicates an image for each prompt in training alone); three
masks a prompt brought to the original size, put through a sigmoid, and compared with the mask,
which is decoded once more, one by one on the CPU; the best of three counts.

Left out, so kinder than the original: its image processor of another library, DataParallel, moving
the model to the device and back, and as many objects of an image as it has.
"""

import json

import numpy as np
import torch
from PIL import Image
from published import PublishedStep
from pycocotools import mask as coco_mask
from segment_anything.utils.transforms import ResizeLongestSide

BATCH = 2
JITTER_PX = 20


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
