"""Every arm on the test images: the IoU of each object, kept so that arms can be paired."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.claim.forms import SIZES
from experiments.claim.run import has_ended
from experiments.claim.stages import Plan, chosen, control_name, export_name
from experiments.claim.subnets import random_of_size
from supersam.config.files import SPACE_FILE
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.prompts import with_boxes
from supersam.data.shards import open_held_out
from supersam.evaluation import (
    Predictor,
    SamModelPredictor,
    SubnetPredictor,
    learn_priors,
)
from supersam.evaluation.evaluator import as_stored, evaluate_all
from supersam.export import load_subnet
from supersam.model import load_sam
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights, read_run
from supersam.runtime.distributed import World
from supersam.space import SubnetSpec, read_space, resolve_shape

PROMPTS = ("point", "box")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """One trained model of the experiment."""

    name: str
    """The same for all seeds."""
    seed: int
    folder: Path
    """A run, or an export."""
    stage: str | None = None
    """The stage that trains it; None where that is not the experiment's."""
    spec: Path | None = None
    """File with the subnet of a supernet; None: the largest, or all that an export holds."""

    @property
    def key(self) -> str:
        """Name of its file of scores."""
        return f"{self.name}-seed-{self.seed}".replace(" ", "-").replace("%", "pct")


def arms(plan: Plan) -> Iterator[Arm]:
    """All arms whose model is there and has been trained to its end."""
    for arm in _all_arms(plan):
        files = [arm.folder, *([] if arm.spec is None else [arm.spec])]
        ended = arm.stage is None or has_ended(plan, arm.stage)
        if ended and all(path.exists() for path in files):
            yield arm


def _all_arms(plan: Plan) -> Iterator[Arm]:
    def trained(name: str, seed: int, run: str, spec: Path | None = None) -> Arm:
        return Arm(name, seed, plan.run(run), run, spec)

    yield Arm("pretrained", 0, plan.pretrained, None if plan.checkpoint else "pretrain")
    for seed in range(plan.seeds):
        yield trained("whole", seed, f"whole-{seed}")
        yield trained("whole, equal compute", seed, f"whole-equal-{seed}")
        yield trained("supernet's largest", seed, f"supernet-{seed}")
        for size in SIZES:
            share = f"-{size:.0%}".replace("%", " %")
            spec = chosen(plan, seed, size)
            yield trained(f"subnet {share}", seed, f"supernet-{seed}", spec)
            name = export_name(seed, size, tuned=True)
            exported = plan.out / "exports" / name
            yield Arm(f"subnet {share}, tuned", seed, exported, f"export {name}")
            yield trained(f"random order {share}", seed, f"random-order-{seed}", spec)
            for kind, words in (("prune", "prune and tune"), ("uniform", "uniform")):
                run = control_name(kind, seed, size)
                yield trained(f"{words} {share}", seed, run, plan.run(run) / "subnet.json")


@dataclass(frozen=True)
class Scores:
    """IoUs of the objects of the test images, (M,) each, in the same order for every arm."""

    group: NDArray[np.int64]
    """Source image of each object: the unit of resampling."""
    point: Floats
    box: Floats
    prior_point: Floats
    """What the best disc around the point scores, without looking at the image."""
    prior_box: Floats
    """What the mean training mask scores, in the box, without looking at the image."""

    @property
    def prior(self) -> Scores:
        """The two priors as an arm of their own."""
        return replace(self, point=self.prior_point, box=self.prior_box)


class HiddenImage:
    """A predictor that is shown grey instead of the image: what the prompt alone tells a model."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(
        self, images: Tensor, sizes: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Answer as the predictor does to images without content."""
        return self._predictor.predict(torch.full_like(images, 128), sizes, points, labels)


class HeldOut:
    """Held-out objects, and what arms score on them; kept in a folder below `scores/`."""

    def __init__(self, plan: Plan, *, images: str, priors: str) -> None:
        """images, priors: names of sets of shards; the priors are learned from the second one."""
        self._plan, self._place = plan, plan.out / "scores" / images
        self._readers = open_held_out([plan.shards(images)])
        self._priors = learn_priors([plan.shards(priors)])

    def score(self, arm: Arm) -> Scores:
        """The scores of an arm; computed once."""
        return self._kept(arm.key, lambda: self._predictor(arm))

    def score_hidden(self, arm: Arm) -> Scores:
        """The same where the arm is shown grey instead of the images."""

        def build() -> tuple[Predictor, int]:
            predictor, side = self._predictor(arm)
            return HiddenImage(predictor), side

        return self._kept(f"{arm.key}-hidden", build)

    def score_random(self, seed: int, size: float) -> list[Scores]:
        """The scores of random subnets of a size, of the same supernet."""
        spec = SubnetSpec.read(chosen(self._plan, seed, size))
        return [
            self._kept(
                f"random-{spec.key()}-seed-{seed}",
                lambda spec=spec: self._subnet(self._plan.run(f"supernet-{seed}"), spec),
            )
            for spec in random_of_size(self._plan, seed, spec)
        ]

    def _kept(self, key: str, build) -> Scores:
        path = self._place / f"{key}.npz"
        if not path.is_file():
            predictor, side = build()
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path.with_suffix(".tmp.npz"), **self._measure(predictor, side))
            path.with_suffix(".tmp.npz").replace(path)
        with np.load(path, allow_pickle=False) as table:
            return Scores(**{field.name: table[field.name] for field in fields(Scores)})

    def _measure(self, predictor: Predictor, side: int) -> dict[str, NDArray]:
        dataset = EvalDataset(self._readers, side=side, prompt="point")
        loader = build_eval_loader(dataset, World.single(), limit=self._plan.form.score_images)
        results = evaluate_all(
            [predictor],
            loader,
            prompts=(as_stored, with_boxes),
            boundary=False,
            priors=self._priors,
        )
        table = {}
        for prompt, (result,) in zip(PROMPTS, results, strict=True):
            objects = result.objects
            table |= {"group": objects.group, prompt: objects.iou_single}
            table[f"prior_{prompt}"] = objects.prior_iou
        return table

    def _predictor(self, arm: Arm) -> tuple[Predictor, int]:
        if arm.folder.is_file():
            sam = load_sam_file(arm.folder)
            return SamModelPredictor(sam, keep_embedding=True), sam.image_encoder.img_size
        if (arm.folder / "model.safetensors").is_file():
            sam = load_subnet(arm.folder)
            return SamModelPredictor(sam, keep_embedding=True), sam.image_encoder.img_size
        spec = None if arm.spec is None else SubnetSpec.read(arm.spec)
        return self._subnet(arm.folder, spec)

    def _subnet(self, folder: Path, spec: SubnetSpec | None) -> tuple[Predictor, int]:
        run = read_run(folder)
        space = read_space(folder / SPACE_FILE, resolve_shape(run.model))
        supernet = load_supernet(run, space, find_weights(run, "last"))
        spec = space.largest() if spec is None else spec
        return SubnetPredictor(supernet, spec, keep_embedding=True), space.shape.image_size


def load_sam_file(path: Path):
    """The pretrained model of a checkpoint file, on the CPU."""
    from supersam.model.sam import infer_shape, read_checkpoint

    shape = infer_shape(read_checkpoint(path))
    assert shape is not None  # the plan has read the same file
    return load_sam(shape, path).eval()


torch.set_num_threads(1)
