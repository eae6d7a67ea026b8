"""The training losses, on low-resolution mask logits, all in float32.

Letters: B images, N prompts, M masks per prompt, s side of the mask logits. Every loss is averaged
over the objects of an image, then over images, so that it does not depend on how a batch is split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from supersam.config import LossConfig
from supersam.data.sample import Batch
from supersam.model import Prediction
from supersam.runtime.extensions import is_extension, load_extension

_FOCAL_ALPHA, _FOCAL_GAMMA = 0.25, 2.0
_SMOOTH = 1.0  # cells; keeps dice defined for empty masks


@dataclass(frozen=True)
class LossTerms:
    """The parts of one subnet's loss, each a float32 scalar; `total` is what is minimised."""

    total: Tensor
    mask: Tensor
    iou: Tensor
    distill: Tensor | None
    """None for a subnet without a teacher."""


def subnet_loss(
    prediction: Prediction, batch: Batch, config: LossConfig, *, teacher: Prediction | None
) -> LossTerms:
    """Compute the loss of one subnet.

    teacher: the prediction of the same batch by the frozen teacher that `config` names, or else by
    the largest subnet; None for a subnet that learns from the annotated masks alone.
    """
    target = batch.masks.float() / 255.0
    losses = _per_mask(config)(prediction.masks, target[:, :, None])  # (B, N, 4)
    per_object = losses[..., 0]
    if losses.shape[-1] > 1:
        per_object = per_object + config.multimask_weight * losses[..., 1:].min(dim=-1).values
    mask = mean_over_objects(per_object, batch.valid)

    error = (prediction.ious - mask_iou(prediction.masks, target[:, :, None])).square()
    iou = mean_over_objects(error.mean(dim=-1), batch.valid)

    total = config.label_weight * (mask + config.iou_weight * iou)
    if teacher is None:
        return LossTerms(total=total, mask=mask, iou=iou, distill=None)
    compare = distillation_loss if config.teacher is None else teacher_loss
    distill = compare(prediction, teacher, batch, config)
    return LossTerms(total=total + distill, mask=mask, iou=iou, distill=distill)


def mean_terms(rounds: Sequence[LossTerms]) -> LossTerms:
    """Average the losses of several prompts of one subnet, without gradient."""

    def mean(name: str) -> Any:
        values = [getattr(terms, name) for terms in rounds]
        return None if values[0] is None else torch.stack(values).detach().mean()

    return LossTerms(**{each.name: mean(each.name) for each in fields(LossTerms)})


def distillation_loss(
    student: Prediction, teacher: Prediction, batch: Batch, config: LossConfig
) -> Tensor:
    """Measure how far a subnet is from the largest one in the single mask.

    By a weight, 0 where it is not set, also in the image embedding.
    """
    masks = disagreement(student.masks[:, :, 0], teacher.masks[:, :, 0].detach())
    loss = config.distill_mask_weight * mean_over_objects(masks, batch.valid)
    if config.embedding_weight == 0:
        return loss
    embedding = F.mse_loss(student.embedding.float(), teacher.embedding.float().detach())
    return loss + config.embedding_weight * embedding


def teacher_loss(
    student: Prediction, teacher: Prediction, batch: Batch, config: LossConfig
) -> Tensor:
    """Measure how far a subnet is from a frozen teacher in all that both predict.

    That is the image embedding, the masks and the IoU estimates. No annotation is used.
    """
    embedding = F.mse_loss(student.embedding.float(), teacher.embedding.float())
    apart = disagreement(student.masks, teacher.masks)  # (B, N, 4)
    masks = apart[..., 0]
    if apart.shape[-1] > 1:
        masks = masks + config.multimask_weight * apart[..., 1:].mean(dim=-1)
    ious = (student.ious - teacher.ious).square().mean(dim=-1)
    return (
        config.embedding_weight * embedding
        + config.distill_mask_weight * mean_over_objects(masks, batch.valid)
        + config.iou_weight * mean_over_objects(ious, batch.valid)
    )


def mean_over_objects(values: Tensor, valid: Tensor) -> Tensor:
    """Average over the valid objects of each image, then over images. values, valid: (B, N)."""
    weights = valid.float()
    return ((values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).mean()


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - dice coefficient of each mask (Milletari et al., arXiv 1606.04797).

    logits: (..., s, s); target: the same or broadcastable, in [0, 1]. Returns (...).
    """
    shares = logits.sigmoid()
    overlap = (shares * target).sum(dim=(-2, -1))
    sizes = shares.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1))
    return 1 - (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)


def balanced_bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with object and background weighing the same, whatever their areas.

    A mean over the whole mask lets small objects vanish. Shapes as in `dice_loss`.
    """
    inside = _weighted_mean(F.softplus(-logits), target)
    outside = _weighted_mean(F.softplus(logits), 1 - target)
    return inside + outside


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss (Lin et al., arXiv 1708.02002), divided by the object's share of the mask.

    Shapes as in `dice_loss`.
    """
    chance = logits.sigmoid()
    hit = chance * target + (1 - chance) * (1 - target)
    alpha = _FOCAL_ALPHA * target + (1 - _FOCAL_ALPHA) * (1 - target)
    cross_entropy = F.softplus(logits) - logits * target
    loss = (alpha * (1 - hit) ** _FOCAL_GAMMA * cross_entropy).sum(dim=(-2, -1))
    return loss / target.sum(dim=(-2, -1)).clamp(min=1)


def disagreement(logits: Tensor, teacher: Tensor) -> Tensor:
    """How far a soft mask is from the teacher's, in [0, 1]: squared differences over squared sizes.

    1 - the dice coefficient with squared sizes (Milletari et al., arXiv 1606.04797), which is least
    where both agree. The other losses are not: dice_loss makes a soft mask hard, and a balanced
    cross-entropy widens it. logits, teacher: (..., s, s). Returns (...).
    """
    mask, wanted = logits.sigmoid(), teacher.sigmoid()
    apart = (mask - wanted).square().sum(dim=(-2, -1))
    return apart / (mask.square() + wanted.square()).sum(dim=(-2, -1)).clamp(min=_SMOOTH)


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of thresholded masks with the target, without gradient; 1 where both are empty.

    logits: (B, N, M, s, s); target: (B, N, 1, s, s) in [0, 1]. Returns (B, N, M).
    """
    with torch.no_grad():
        predicted, true = logits > 0, target > 0.5
        both = (predicted & true).sum(dim=(-2, -1))
        either = (predicted | true).sum(dim=(-2, -1))
        return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def _per_mask(config: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    if is_extension(config.mask):
        own: Callable[[Tensor, Tensor], Tensor] = load_extension(config.mask, "--loss.mask")
        return own
    pixel = {"dice_bce": balanced_bce_loss, "dice_focal": focal_loss, "dice": None}[config.mask]

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        value = config.dice_weight * dice_loss(logits, target)
        if pixel is not None:
            value = value + config.pixel_weight * pixel(logits, target)
        return value

    return loss


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    total = (values * weights).sum(dim=(-2, -1))
    return total / weights.sum(dim=(-2, -1)).clamp(min=1e-6)
