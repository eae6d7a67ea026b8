"""What several benchmarks of trained supernets share: loading, scoring, a journal that resumes."""

import json
import logging
import os
import platform
import sys
from pathlib import Path

import torch

from supersam.config import LossConfig, TrainRun, load_run
from supersam.config.design import CalibrationConfig
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.shards import ShardReader
from supersam.design.calibration import load_calibration
from supersam.evaluation import SubnetPredictor, evaluate
from supersam.model import SamSupernet, resolve_shape
from supersam.runtime.distributed import World
from supersam.space import published_space
from supersam.training.losses import subnet_loss
from supersam.training.run_folder import git_commit
from supersam.training.trained import build_supernet

ROOT = Path(__file__).parents[1]


def load_trained(folder, space=None):
    """The supernet of a run's newest checkpoint, and the run."""
    logging.disable(logging.INFO)
    run = load_run(TrainRun, folder / "run.yaml")
    model = run.model.model_copy(update={"checkpoint": folder})
    space = space or published_space(resolve_shape(model))
    supernet = build_supernet(run.model_copy(update={"model": model}), space)
    assert isinstance(supernet, SamSupernet)
    return supernet.eval(), run


def calibration_of(run, folders, *, images, side, seed=0):
    """Batches of training images, cropped as the run crops them."""
    config = CalibrationConfig(images=images, batch=4, crop_px=run.data.augment.crop_px, seed=seed)
    return load_calibration([ShardReader(f) for f in folders], config, side=side)


def task_loss(prediction, batch):
    return subnet_loss(prediction, batch, LossConfig(), teacher=None).total


class HeldOut:
    """Held-out images with box prompts, kept in memory."""

    def __init__(self, folders, *, side, images):
        dataset = EvalDataset([ShardReader(f) for f in folders], side=side, prompt="box")
        self.images = list(build_eval_loader(dataset, World.single(), limit=images))

    def score(self, supernet, spec):
        """The mIoU in bfloat16 and its 95 % interval over images."""
        predictor = SubnetPredictor(supernet, spec, bf16=True)  # a third less time on a CPU
        result = evaluate(predictor, self.images, boundary=False)
        return {"miou": result.miou, "interval": result.miou_interval,
                "objects": result.num_objects, "images": result.num_images}  # fmt: skip


class Journal:
    """Results by key in a JSON lines file: what is there is not computed again."""

    def __init__(self, path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known = {}
        if path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry["key"]] = entry["value"]

    def get(self, key, compute):
        """The value of a key, computed and kept where it is new."""
        if key not in self.known:
            self.known[key] = compute()
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "value": self.known[key]}) + "\n")
            print(key, self.known[key], file=sys.stderr, flush=True)
        return self.known[key]


def provenance():
    """What every result says of how it came to be."""
    return {
        "command": " ".join(sys.argv),
        "commit": git_commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "load_average": os.getloadavg(),
    }


def table(lines):
    """Rows of cells as Markdown; the first row is the head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
