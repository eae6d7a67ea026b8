"""How large the experiment is: the model, the steps of each stage, and how much is searched."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = (0.3, 0.5, 0.7)
"""Shares of the whole model's parameters that the subnets do without."""


@dataclass(frozen=True)
class Form:
    """One size of the experiment. Steps are optimizer steps.

    The model is vit_s, 26.5 M parameters, at several input sizes. A narrower one could not lose
    70 %, as the mask decoder alone has 4 M.
    """

    image_size: int
    """Side of the square input, pixels."""
    window_size: int
    """Side of an attention window, patches of 16 px."""
    plain_steps: int
    """First of all on plain drawings. From random weights on everything at once, a model rests on a
    plateau for hundreds of steps, and learns to answer from the prompt alone (docs/results.md)."""
    pretrain_steps: int
    """Of the pretrained model after that, on photographs, drawings, streets, membranes and plain
    drawings."""
    whole_steps: int
    """Of fine-tuning the whole pretrained model on the target, before the sandwich."""
    sandwich_steps: int
    """Of the sandwich rule, from the fine-tuned whole model."""
    tune_steps: int
    """Of tuning one chosen subnet alone."""
    trials: int
    """Subnets that the search evaluates."""
    drawings: int
    """Generated images of the pretraining, as many plain ones as textured ones."""
    tile_px: int = 128
    """Side of the tiles into which the target's images are cut, pixels."""
    crop_px: tuple[int, int] = (96, 160)
    """Sides of the random crops of the target's training images, pixels."""
    pretrain_crop_px: tuple[int, int] = (120, 320)
    """The same for the pretraining."""
    pretrain_weights: tuple[int, int, int, int, int] = (6, 2, 1, 1, 1)
    """Shares of photographs, drawings, streets, membranes and plain drawings in it."""
    batch: int = 4
    """Images of a step."""
    prompts: int = 8
    """Objects, and so prompts, of an image."""
    validate_images: int = 40
    """Images of a validation during training."""
    search_images: int | None = None
    """Images or tiles on which the search evaluates a subnet, spread evenly; None takes all."""
    score_images: int | None = None
    """Test images or tiles that the report looks at, spread evenly; None takes all."""
    equal_compute: bool = True
    """Whether the whole model is also trained with the computation of the supernet."""
    random_subnets: int = 8
    """Random subnets of each size that the search's choice is compared with."""
    embed_dim: int = 384
    num_heads: int = 6
    depth: int = 12
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    removable: tuple[int, ...] = (1, 2, 4, 6, 7, 9)
    sandwich_cost: float = 2.2
    """Computation of a sandwich step against one of the largest subnet alone (measured)."""

    @property
    def whole_total(self) -> int:
        """Steps of the whole model's control that takes as many steps as the supernet."""
        return self.whole_steps + self.sandwich_steps

    @property
    def whole_equal_compute(self) -> int:
        """Steps of the whole model's control that computes as much as the supernet's training."""
        return self.whole_steps + round(self.sandwich_cost * self.sandwich_steps)


FORMS = {
    # A few minutes: shows that every stage runs and resumes; its numbers mean nothing.
    "smoke": Form(
        image_size=64,
        window_size=2,
        plain_steps=2,
        pretrain_steps=4,
        whole_steps=3,
        sandwich_steps=3,
        tune_steps=2,
        trials=12,
        drawings=8,
        batch=2,
        prompts=2,
        validate_images=2,
        score_images=12,
        random_subnets=2,
    ),
    # The smallest that may be worth reading: nuclei at twice their size, as a model from random
    # weights sees nothing for a long time where an object is smaller than a patch
    # (docs/results.md). At 128 px a step takes 0.45 of its time at 192 px: steps matter more.
    "small": Form(
        image_size=128,
        window_size=4,
        tile_px=64,
        crop_px=(48, 96),
        pretrain_crop_px=(64, 192),
        pretrain_weights=(2, 1, 1, 2, 3),
        plain_steps=200,
        pretrain_steps=600,
        whole_steps=450,
        sandwich_steps=240,
        tune_steps=50,
        trials=32,
        drawings=1000,
        search_images=120,
        score_images=300,
        equal_compute=False,
        random_subnets=2,
    ),
    # The experiment.
    "full": Form(
        image_size=256,
        window_size=8,
        plain_steps=300,
        pretrain_steps=12000,
        whole_steps=1500,
        sandwich_steps=1500,
        tune_steps=500,
        trials=200,
        drawings=6000,
    ),
}
