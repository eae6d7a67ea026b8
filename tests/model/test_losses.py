"""Losses against plain references, and what they must not depend on."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from supersam.config import LossConfig
from supersam.data.sample import Batch
from supersam.model import Prediction
from supersam.model.losses import (
    balanced_bce_loss,
    dice_loss,
    disagreement,
    focal_loss,
    mask_iou,
    mean_over_objects,
    mean_terms,
    subnet_loss,
    teacher_loss,
)

SIDE = 8


def logits_and_targets(count: int = 6, *, soft: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, SIDE, SIDE, generator=generator, dtype=torch.float64)
    target = torch.rand(count, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return logits, target if soft else (target > 0.7).double()


def scalar_dice(logits: np.ndarray, target: np.ndarray) -> float:
    shares = 1 / (1 + np.exp(-logits))
    return 1 - (2 * (shares * target).sum() + 1) / (shares.sum() + target.sum() + 1)


def scalar_balanced_bce(logits: np.ndarray, target: np.ndarray) -> float:
    inside = outside = 0.0
    for x, t in zip(logits.ravel(), target.ravel(), strict=True):
        inside += t * math.log(1 + math.exp(-x)) / target.sum()
        outside += (1 - t) * math.log(1 + math.exp(x)) / (1 - target).sum()
    return inside + outside


def scalar_focal(logits: np.ndarray, target: np.ndarray) -> float:
    total = 0.0
    for x, t in zip(logits.ravel(), target.ravel(), strict=True):
        p = 1 / (1 + math.exp(-x))
        if t == 1:
            total += 0.25 * (1 - p) ** 2 * -math.log(p)
        else:
            total += 0.75 * p**2 * -math.log(1 - p)
    return total / target.sum()


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (dice_loss, scalar_dice),
        (balanced_bce_loss, scalar_balanced_bce),
        (focal_loss, scalar_focal),
    ],
)
def test_losses_equal_their_formulas_pixel_by_pixel(loss, reference):
    logits, target = logits_and_targets()
    expected = [reference(x, t) for x, t in zip(logits.numpy(), target.numpy(), strict=True)]
    np.testing.assert_allclose(loss(logits, target).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("loss", [dice_loss, balanced_bce_loss, focal_loss])
def test_a_perfect_mask_costs_nothing_and_losses_have_gradients_that_mend(loss):
    logits, target = logits_and_targets()
    perfect = (target - 0.5) * 80
    assert loss(perfect, target).abs().max() < 1e-6
    logits.requires_grad_(True)
    before = loss(logits, target).sum()
    (gradient,) = torch.autograd.grad(before, logits)
    assert loss(logits - 0.01 * gradient, target).sum() < before


@pytest.mark.parametrize("loss", [dice_loss, balanced_bce_loss, focal_loss])
@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("level", [-60.0, 0.0, 60.0])
def test_empty_and_full_masks_and_great_logits_stay_finite(loss, fill, level):
    logits = torch.full((2, SIDE, SIDE), level, requires_grad=True)
    value = loss(logits, torch.full((2, SIDE, SIDE), fill))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_balanced_loss_weighs_a_small_object_like_a_large_one():
    """All background costs the same whatever the object's area: none can vanish in a mean."""
    nothing = torch.full((SIDE, SIDE), -2.0)
    small, large = torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    small[0, 0], large[:5] = 1, 1
    torch.testing.assert_close(balanced_bce_loss(nothing, small), balanced_bce_loss(nothing, large))


def test_soft_targets_equal_the_mean_over_their_pixels():
    """A cell that an object half covers counts half inside and half outside."""
    logits, target = logits_and_targets(1, soft=True)
    expected = scalar_balanced_bce(logits[0].numpy(), target[0].numpy())
    assert balanced_bce_loss(logits, target)[0].item() == pytest.approx(expected, rel=1e-10)


def test_mask_iou_equals_counting_and_empty_masks_agree():
    logits, target = logits_and_targets()
    logits, target = logits.view(2, 3, 1, SIDE, SIDE), target.view(2, 3, 1, SIDE, SIDE)
    logits[0, 0], target[0, 0] = -1, 0
    ious = mask_iou(logits.repeat(1, 1, 4, 1, 1), target)
    assert ious.shape == (2, 3, 4)
    assert ious[0, 0, 0] == 1
    for image, prompt in np.ndindex(2, 3):
        predicted = logits[image, prompt, 0].numpy() > 0
        true = target[image, prompt, 0].numpy() > 0.5
        if (predicted | true).any():
            expected = (predicted & true).sum() / (predicted | true).sum()
            assert ious[image, prompt, 2].item() == pytest.approx(expected, rel=1e-6)


def test_invalid_objects_do_not_count():
    values = torch.tensor([[1.0, 2.0, 100.0], [5.0, 100.0, 100.0], [100.0, 100.0, 100.0]])
    valid = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert mean_over_objects(values, valid).item() == pytest.approx((1.5 + 5.0 + 0.0) / 3)


def random_case(images: int = 4) -> tuple[Prediction, Batch]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    prediction = Prediction(
        masks=normal(images, 3, 4, SIDE, SIDE),
        ious=normal(images, 3, 4),
        embedding=normal(images, 256, 2, 2),
    )
    batch = Batch(
        images=torch.zeros(images, 3, 32, 32, dtype=torch.uint8),
        sizes=torch.full((images, 2), 32),
        points=torch.zeros(images, 3, 2, 2),
        labels=torch.ones(images, 3, 2, dtype=torch.int64),
        masks=torch.randint(0, 256, (images, 3, SIDE, SIDE), generator=generator).byte(),
        valid=torch.tensor([[True, True, True], [True, False, False]] * (images // 2)),
        sample_ids=torch.arange(images),
    )
    return prediction, batch


def part(values: Prediction, batch: Batch, chosen: slice) -> tuple[Prediction, Batch]:
    fields = {name: tensor[chosen] for name, tensor in vars(values).items()}
    return Prediction(**fields), Batch(
        **{n: t[chosen] for n, t in vars(batch).items() if isinstance(t, torch.Tensor)}
    )


@pytest.mark.parametrize("mask", ["dice_bce", "dice_focal", "dice"])
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(mask):
    prediction, batch = random_case()
    teacher = Prediction(**{n: t.flip(0) for n, t in vars(prediction).items()})
    config = LossConfig(mask=mask, distill=True)
    whole = subnet_loss(prediction, batch, config, teacher=teacher)
    for size in (1, 2):
        slices = [slice(i, i + size) for i in range(0, 4, size)]
        parts = [
            subnet_loss(*part(prediction, batch, s), config, teacher=part(teacher, batch, s)[0])
            for s in slices
        ]
        for name, value in vars(whole).items():
            mean = torch.stack([getattr(p, name) for p in parts]).mean()
            torch.testing.assert_close(mean, value)


def test_of_one_mask_a_prompt_the_loss_is_that_of_the_single_mask():
    prediction, batch = random_case()
    config = LossConfig(multimask_weight=0.0, iou_weight=0.0)
    expected = subnet_loss(prediction, batch, config, teacher=None).mask
    alone = subnet_loss(prediction.single(), batch, LossConfig(iou_weight=0.0), teacher=None)
    assert torch.equal(alone.total, expected)
    assert float(teacher_loss(prediction.single(), prediction.single(), batch, config)) == 0


def test_the_loss_of_several_rounds_is_their_mean_without_gradient():
    prediction, batch = random_case()
    prediction.masks.requires_grad_()
    for teacher in (None, prediction.single()):
        rounds = [
            subnet_loss(each, batch, LossConfig(distill=True), teacher=teacher)
            for each in (prediction.single(), replace(prediction, masks=-prediction.masks).single())
        ]
        mean = mean_terms(rounds)
        assert not mean.total.requires_grad
        assert (mean.distill is None) == (teacher is None)
        for name in ("total", "mask", "iou", *(["distill"] if teacher is not None else [])):
            first, second = (float(getattr(each, name).detach()) for each in rounds)
            assert float(getattr(mean, name)) == pytest.approx((first + second) / 2)


def test_the_mask_loss_is_the_single_mask_and_the_best_of_three():
    prediction, batch = random_case()
    config = LossConfig(mask="dice", multimask_weight=0.25, iou_weight=0.0)
    target = batch.masks.float() / 255
    expected = []
    for image in range(4):
        objects = []
        for prompt in range(3):
            if batch.valid[image, prompt]:
                costs = [
                    scalar_dice(m.double().numpy(), target[image, prompt].double().numpy())
                    for m in prediction.masks[image, prompt]
                ]
                objects.append(costs[0] + 0.25 * min(costs[1:]))
        expected.append(np.mean(objects))
    terms = subnet_loss(prediction, batch, config, teacher=None)
    assert terms.total.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_iou_loss_is_the_squared_error_of_the_estimate():
    prediction, batch = random_case()
    exact = mask_iou(prediction.masks, batch.masks[:, :, None].float() / 255)
    right = Prediction(prediction.masks, exact + 0.5, prediction.embedding)
    assert subnet_loss(right, batch, LossConfig(), teacher=None).iou.item() == pytest.approx(0.25)


def test_what_an_invalid_object_holds_changes_nothing():
    prediction, batch = random_case()
    before = subnet_loss(prediction, batch, LossConfig(), teacher=None)
    prediction.masks[~batch.valid], prediction.ious[~batch.valid] = 50.0, -7.0
    batch.masks[~batch.valid] = 255
    assert vars(subnet_loss(prediction, batch, LossConfig(), teacher=None)) == vars(before)


@pytest.mark.parametrize("mask", ["dice_bce", "dice_focal", "dice"])
def test_a_subnet_that_agrees_with_its_teacher_has_no_distillation_loss_and_no_pull(mask):
    prediction, batch = random_case()
    config = LossConfig(mask=mask, distill=True, distill_embedding_weight=1)
    student = Prediction(**{n: t.clone().requires_grad_() for n, t in vars(prediction).items()})
    same = subnet_loss(student, batch, config, teacher=prediction).distill
    assert same.item() == pytest.approx(0, abs=1e-6)
    same.backward()
    assert student.masks.grad.abs().max() < 1e-6
    assert student.embedding.grad.abs().max() < 1e-6
    moved = Prediction(prediction.masks + 0.1, prediction.ious, prediction.embedding + 0.1)
    other = subnet_loss(moved, batch, config, teacher=prediction)
    assert other.distill > 0.01
    parts = other.mask + config.iou_weight * other.iou + other.distill
    assert other.total.item() == pytest.approx(parts.item(), rel=1e-5)


def test_embeddings_are_drawn_to_a_frozen_teacher_and_not_to_the_largest_subnet():
    """Their pull on shared weights can keep the largest subnet from looking at the image."""
    prediction, batch = random_case()
    moved = Prediction(prediction.masks, prediction.ious, prediction.embedding + 0.5)
    in_place, frozen = LossConfig(distill=True), LossConfig(teacher=Path("sam.pth"))
    asked = LossConfig(distill=True, distill_embedding_weight=2)
    apart = [
        subnet_loss(moved, batch, config, teacher=prediction).distill.item()
        - subnet_loss(prediction, batch, config, teacher=prediction).distill.item()
        for config in (in_place, frozen, asked)
    ]
    assert apart == pytest.approx([0, 0.25, 0.5], abs=1e-6)


def test_the_disagreement_with_a_teacher_is_one_minus_dice_with_squared_sizes():
    student, teacher = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    p, q = teacher.sigmoid(), student.sigmoid()
    shared, sizes = (p * q).sum(dim=(-2, -1)), (p * p + q * q).sum(dim=(-2, -1))
    torch.testing.assert_close(disagreement(student, teacher), 1 - 2 * shared / sizes)
    far = torch.full((1, 8, 8), 30.0)
    assert disagreement(far, -far).item() == pytest.approx(1)
    assert disagreement(-far, -far).item() == pytest.approx(0)


def test_the_teacher_gets_no_gradient():
    prediction, batch = random_case()
    teacher = Prediction(**{n: t.clone().requires_grad_(True) for n, t in vars(prediction).items()})
    prediction.masks.requires_grad_(True)
    subnet_loss(prediction, batch, LossConfig(distill=True), teacher=teacher).total.backward()
    assert prediction.masks.grad is not None
    assert all(tensor.grad is None for tensor in vars(teacher).values())


def test_a_frozen_teacher_is_followed_in_all_masks_and_estimates():
    """In-place distillation compares the single mask alone."""
    prediction, batch = random_case()
    config = LossConfig(teacher=Path("teacher.pth"))
    same = subnet_loss(prediction, batch, config, teacher=prediction)
    assert float(same.distill) == 0.0
    masks = prediction.masks.clone()
    masks[:, :, 2] += 1.0
    other = replace(prediction, masks=masks)
    assert float(subnet_loss(prediction, batch, config, teacher=other).distill) > 1e-3
    in_place = subnet_loss(prediction, batch, LossConfig(distill=True), teacher=other)
    assert float(in_place.distill) == 0.0
    other = replace(prediction, ious=prediction.ious + 1.0)
    expected = pytest.approx(config.iou_weight, rel=1e-5)
    assert float(subnet_loss(prediction, batch, config, teacher=other).distill) == expected


def test_without_label_weight_the_teacher_alone_is_learned_from():
    prediction, batch = random_case()
    config = LossConfig(teacher=Path("teacher.pth"), label_weight=0.0)
    other = replace(prediction, masks=prediction.masks + 0.5)
    terms = subnet_loss(prediction, batch, config, teacher=other)
    assert float(terms.total) == float(terms.distill) > 0
    assert float(terms.mask) > 0
