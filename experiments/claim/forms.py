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
    pretrain_steps: int
    """Of the pretrained model, on photographs, drawings, streets and membranes."""
    whole_steps: int
    """Of fine-tuning the whole pretrained model on the target, before the sandwich."""
    sandwich_steps: int
    """Of the sandwich rule, from the fine-tuned whole model."""
    tune_steps: int
    """Of tuning one chosen subnet alone."""
    trials: int
    """Subnets that the search evaluates."""
    drawings: int
    """Generated images of the pretraining."""
    batch: int = 4
    """Images of a step."""
    prompts: int = 8
    """Objects, and so prompts, of an image."""
    validate_images: int = 40
    """Images of a validation during training."""
    score_images: int | None = None
    """Test images or tiles that the report looks at, spread evenly; None takes all."""
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
    # The smallest that is worth reading: objects of the target at their own size.
    "small": Form(
        image_size=128,
        window_size=4,
        pretrain_steps=1200,
        whole_steps=400,
        sandwich_steps=240,
        tune_steps=80,
        trials=48,
        drawings=1000,
        random_subnets=4,
    ),
    # The experiment.
    "full": Form(
        image_size=256,
        window_size=8,
        pretrain_steps=12000,
        whole_steps=1500,
        sandwich_steps=1500,
        tune_steps=500,
        trials=200,
        drawings=6000,
    ),
}
