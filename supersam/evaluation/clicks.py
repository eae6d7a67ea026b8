"""Score corrections by simulated clicks, as the field does: no draw, the same clicks every time.

The first click is the point of the object that is farthest from its border. Each further one is the
point that is farthest from the border of a region where the mask is wrong, missing or surplus; a
point is clicked once (RITM, Sofiiuk et al., arXiv 2102.06583). The model gets all clicks so far and
its former mask. To the first click it answers with the multimask output that it ranks best, then
with the single mask, as SAM's authors evaluate.

Letters: M objects of an image, m of them at a time, K clicks, s mask-logit side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supersam.config import UserError
from supersam.data.sample import LABEL_BACKGROUND, LABEL_FOREGROUND, LABEL_PAD, EvalImage
from supersam.data.transforms import Crop, Geometry
from supersam.evaluation.evaluator import require_finite, slices
from supersam.evaluation.metrics import mask_iou
from supersam.evaluation.result import Floats, Integers
from supersam.evaluation.upscale import MaskUpscaler
from supersam.runtime.bootstrap import Difference, mean_interval, paired_difference

GOAL = 0.8
"""IoU that clicks are counted to."""

Click = tuple[int, int, int]
"""Row and column of the original image, LABEL_*."""
Interval = tuple[float, float]


class ClickPredictor(Protocol):
    """A predictor that also takes former masks as prompts."""

    def predict(
        self,
        images: Tensor,
        sizes: Tensor,
        points: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Like `Predictor`, with any number of points; masks: (B, N, s, s) logits."""
        ...


@dataclass(frozen=True)
class ClickTable:
    """One row per object, (M,) or (M, K) each."""

    sample_id: Integers
    group: Integers
    ious: Floats
    """(M, K): after each click."""

    @property
    def clicks_to_goal(self) -> Floats:
        """(M,) clicks until the IoU reaches the goal; K where it never does."""
        reached = self.ious >= GOAL
        first = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, reached.shape[1])
        counts: Floats = first.astype(np.float64)
        return counts


@dataclass(frozen=True)
class ClickResult:
    """What clicks give, over all objects; intervals are 95 %, groups resampled."""

    miou: tuple[float, ...]
    """Mean IoU after each click."""
    miou_intervals: tuple[Interval | None, ...]
    gain: Difference
    """After the last click less after the first one, object by object."""
    goal: float
    clicks_to_goal: float
    """Mean number of clicks to an IoU of `goal`; all clicks where it is never reached."""
    clicks_to_goal_interval: Interval | None
    num_unreached: int
    """Objects that never reach it."""
    num_objects: int
    num_groups: int
    objects: ClickTable = field(repr=False, compare=False)
    """The numbers behind the means."""

    def as_dict(self) -> dict[str, Any]:
        """Return every number but the table, as plain values that JSON can hold."""
        plain = {name: value for name, value in vars(self).items() if name != "objects"}
        return plain | {"gain": asdict(self.gain)}


@dataclass(frozen=True)
class ClickDifference:
    """A result less another one of the same objects."""

    miou: tuple[Difference, ...]
    """After each click."""
    clicks_to_goal: Difference


class ClickScorer:
    """Scores a predictor on images as they pass by."""

    def __init__(
        self, predictor: ClickPredictor, *, clicks: int, prompts_per_call: int = 64
    ) -> None:
        """clicks: on each object. prompts_per_call: objects that are predicted at a time."""
        self.predictor = predictor
        self._clicks = clicks
        self._at_once = prompts_per_call
        self._tables: list[ClickTable] = []

    def watch(self, images: Iterable[EvalImage]) -> Iterator[EvalImage]:
        """Yield the images, each after it was scored."""
        for image in images:
            if len(image.masks) > 0:
                self._tables.append(
                    click_image(
                        self.predictor, image, clicks=self._clicks, prompts_per_call=self._at_once
                    )
                )
            yield image

    def result(self) -> ClickResult:
        """Return the result on the images so far."""
        return summarize_clicks(self._tables)


def click_image(
    predictor: ClickPredictor, image: EvalImage, *, clicks: int, prompts_per_call: int = 64
) -> ClickTable:
    """Click on each object of an image; it has at least one."""
    groups = [
        _Objects(image, some).click(predictor, clicks)
        for some in slices(len(image.masks), prompts_per_call)
    ]
    ious = np.concatenate(groups)
    return ClickTable(
        sample_id=np.full(len(ious), image.sample_id),
        group=np.full(len(ious), image.group),
        ious=ious,
    )


def next_click(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], clicked: Iterable[tuple[int, int]] = ()
) -> Click | None:
    """Return the click that corrects a mask; None where no pixel is wrong and not clicked yet.

    Args:
        predicted: (h, w); the frame counts as a border.
        truth: (h, w).
        clicked: rows and columns that are no choice.
    """
    done = tuple(clicked)
    missing = _deepest(truth & ~predicted, done)
    surplus = _deepest(predicted & ~truth, done)
    if missing[0] == surplus[0] == 0:
        return None
    if missing[0] > surplus[0]:
        return missing[1], missing[2], LABEL_FOREGROUND
    return surplus[1], surplus[2], LABEL_BACKGROUND


def summarize_clicks(tables: Sequence[ClickTable]) -> ClickResult:
    """Return the means over the objects of all tables. Raises UserError where there is none."""
    if len(tables) == 0:
        raise UserError("no image has an annotated object; evaluate on a split that holds objects")
    objects = ClickTable(
        *(
            np.concatenate([getattr(t, name) for t in tables])
            for name in ("sample_id", "group", "ious")
        )
    )
    columns, needed = objects.ious.T, objects.clicks_to_goal
    return ClickResult(
        miou=tuple(float(column.mean()) for column in columns),
        miou_intervals=tuple(mean_interval(column, objects.group) for column in columns),
        gain=paired_difference(columns[-1], columns[0], objects.group),
        goal=GOAL,
        clicks_to_goal=float(needed.mean()),
        clicks_to_goal_interval=mean_interval(needed, objects.group),
        num_unreached=int((objects.ious < GOAL).all(axis=1).sum()),
        num_objects=len(needed),
        num_groups=len(np.unique(objects.group)),
        objects=objects,
    )


def subtract_clicks(result: ClickResult, other: ClickResult) -> ClickDifference:
    """Compare two results on the same images object by object: `result` less `other`."""
    mine, theirs = result.objects, other.objects
    if not np.array_equal(mine.sample_id, theirs.sample_id):
        raise ValueError("the two results are not of the same objects")
    pairs = zip(mine.ious.T, theirs.ious.T, strict=True)
    needed = (mine.clicks_to_goal, theirs.clicks_to_goal)
    return ClickDifference(
        miou=tuple(paired_difference(*pair, mine.group) for pair in pairs),
        clicks_to_goal=paired_difference(*needed, mine.group),
    )


class _Objects:
    """Some objects of an image while they are clicked on."""

    def __init__(self, image: EvalImage, some: slice) -> None:
        self._image = image
        self._indices = range(len(image.masks))[some]
        height, width = image.original_size
        self._geometry = Geometry(Crop(0, 0, width, height), image.image.shape[-1])
        self._clicks: list[list[Click]] = [[self._first(index)] for index in self._indices]
        self._done = np.zeros(len(self._indices), bool)
        """Objects whose mask cannot be corrected further."""

    def click(self, predictor: ClickPredictor, clicks: int) -> Floats:
        """Return the IoUs after each click, (m, K)."""
        ious = np.zeros((len(self._indices), clicks))
        masks: Tensor | None = None
        for number in range(clicks):
            masks = self._predict(predictor, masks, first=number == 0)
            ious[:, number] = self._score(masks, ious[:, max(number - 1, 0)])
        return ious

    def _first(self, index: int) -> Click:
        patch = self._image.masks.patch(index)
        assert patch is not None  # an object has pixels
        click = next_click(np.zeros_like(patch.pixels), patch.pixels)
        assert click is not None
        return click[0] + patch.top, click[1] + patch.left, click[2]

    def _predict(self, predictor: ClickPredictor, masks: Tensor | None, *, first: bool) -> Tensor:
        """The masks after the clicks so far, (m, s, s) logits on the CPU."""
        points, labels = self._prompts()
        former = None if masks is None else masks[None]
        sizes = torch.tensor([self._image.size])
        logits, estimates = predictor.predict(
            self._image.image[None], sizes, points[None], labels[None], former
        )
        require_finite(logits, estimates, sample_id=self._image.sample_id)
        logits, estimates = logits[0].cpu(), estimates[0].cpu()
        if not first:
            return logits[:, 0]
        best = 1 + estimates[:, 1:].argmax(1)
        return logits[torch.arange(len(logits)), best]

    def _prompts(self) -> tuple[Tensor, Tensor]:
        """Points (m, k + 1, 2) and labels: the clicks, then segment-anything's padding."""
        places = np.array(self._clicks, np.float64)  # (m, k, 3)
        xy = self._geometry.map_points(places[..., 1::-1].reshape(-1, 2)).reshape(
            *places.shape[:2], 2
        )
        points = np.concatenate([xy, np.zeros((len(places), 1, 2))], axis=1)
        labels = np.concatenate([places[..., 2], np.full((len(places), 1), LABEL_PAD)], axis=1)
        return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels).long()

    def _score(self, masks: Tensor, former: Floats) -> Floats:
        """The IoU of each mask; adds the click that corrects it."""
        image = self._image
        upscaler = MaskUpscaler.for_image(
            masks, side=image.image.shape[-1], size=image.size, original_size=image.original_size
        )
        ious: Floats = former.copy()
        for place, index in enumerate(self._indices):
            clicks, only = self._clicks[place], slice(index, index + 1)
            if not self._done[place]:
                window = upscaler.window(masks[place, None, None], image.masks.frame(only))
                predicted = upscaler.masks(masks[place, None], window)
                truth = image.masks.draw(only, window)
                ious[place] = float(mask_iou(predicted, truth)[0])
                top, left = window[0].start, window[1].start
                before = [(row - top, column - left) for row, column, _ in clicks]
                found = next_click(predicted[0].numpy(), truth[0].numpy(), before)
                self._done[place] = found is None
                if found is not None:
                    clicks.append((found[0] + top, found[1] + left, found[2]))
            if self._done[place]:
                clicks.append(clicks[-1])  # as many as the others have; its mask stays
        return ious


def _deepest(
    region: NDArray[np.bool_], clicked: Sequence[tuple[int, int]]
) -> tuple[float, int, int]:
    """The pixel of a region that is farthest from its outside: that distance, row, column.

    The first of several by row; distance 0 where no pixel is left.
    """
    from scipy import ndimage  # slow to import

    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if len(rows) == 0:
        return 0.0, 0, 0
    top, left = int(rows[0]), int(columns[0])
    tight = region[top : rows[-1] + 1, left : columns[-1] + 1]
    depth = ndimage.distance_transform_edt(np.pad(tight, 1))[1:-1, 1:-1]
    for row, column in clicked:
        if 0 <= row - top < depth.shape[0] and 0 <= column - left < depth.shape[1]:
            depth[row - top, column - left] = 0
    row, column = divmod(int(depth.argmax()), depth.shape[1])
    return float(depth[row, column]), row + top, column + left
