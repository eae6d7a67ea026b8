"""What experiments with trained supernets share: loading, scoring, a journal that resumes."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.in_turn import provenance
from supersam.config import TrainRun, load_run
from supersam.config.design import CalibrationConfig
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.sample import LABEL_PAD
from supersam.data.shards import ShardReader
from supersam.design.calibration import load_calibration
from supersam.evaluation import SubnetPredictor, evaluate
from supersam.model import SamSupernet
from supersam.runs.supernet import build_supernet
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World
from supersam.space import published_space, resolve_shape

ROOT = Path(__file__).parents[1]


def load_trained(folder, space=None):
    """The supernet of a run's newest checkpoint, on the GPU where there is one, and the run."""
    logging.disable(logging.INFO)
    run = load_run(TrainRun, folder / "run.yaml")
    model = run.model.model_copy(update={"checkpoint": folder})
    space = space or published_space(resolve_shape(model))
    supernet = build_supernet(run.model_copy(update={"model": model}), space)
    assert isinstance(supernet, SamSupernet)
    return supernet.to(choose_device("auto")).eval(), run


def train(folder, *options):
    """Train with launch/train.py, from where the run in `folder` was to its end."""
    command = [sys.executable, ROOT / "launch/train.py", "--run", folder, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{folder} failed:\n{done.stderr[-3000:]}")


def calibration_of(run, folders, *, images, side, seed=0):
    """Batches of training images, cropped as the run crops them."""
    config = CalibrationConfig(images=images, batch=4, crop_px=run.data.augment.crop_px, seed=seed)
    return load_calibration([ShardReader(f) for f in folders], config, side=side)


class HeldOut:
    """Held-out images with their prompts, kept in memory."""

    def __init__(self, folders, *, side, images=None, prompt="box", exact=False):
        """images: that many, evenly spaced; None takes all. exact: in float32 on a GPU, too."""
        dataset = EvalDataset([ShardReader(f) for f in folders], side=side, prompt=prompt)
        loader = build_eval_loader(dataset, World.single(), limit=images)
        self.images = [image for image in loader if len(image.masks) > 0]
        self.exact = exact

    def evaluate(self, supernet, spec):
        """The EvalResult of a subnet. The CPU scores while a GPU predicts."""
        on_gpu = supernet.pixel_mean.is_cuda  # a CPU without bfloat16 takes ten times as long in it
        predictor = SubnetPredictor(supernet, spec, bf16=on_gpu and not self.exact)
        most = max(len(image.masks) for image in self.images)
        at_once = MASKS_AT_ONCE if on_gpu else 1
        known = _Known(predict_ahead(predictor, self.images, at_once))
        return evaluate(known, self.images, boundary=False, prompts_per_call=most)

    def score(self, supernet, spec):
        """The mIoU and its 95 % interval over images."""
        result = self.evaluate(supernet, spec)
        return {"miou": result.miou, "interval": result.miou_interval,
                "objects": result.num_objects, "images": result.num_images}  # fmt: skip


MASKS_AT_ONCE = 1024  # prompts of one call on a GPU, padding included


def predict_ahead(predictor, images, at_once):
    """The predictions of each image, made for many at a time, on the CPU."""
    for group in grouped(images, at_once):
        most = max(len(image.points) for image in group)
        short = [most - len(image.points) for image in group]
        points = [F.pad(i.points, (0, 0, 0, 0, 0, n)) for i, n in zip(group, short, strict=True)]
        labels = [
            F.pad(i.labels, (0, 0, 0, n), value=LABEL_PAD)
            for i, n in zip(group, short, strict=True)
        ]
        logits, estimates = predictor.predict(
            torch.stack([image.image for image in group]),
            torch.tensor([image.size for image in group]),
            torch.stack(points),
            torch.stack(labels),
        )
        logits, estimates = logits.cpu(), estimates.cpu()
        for row, image in enumerate(group):
            count = len(image.points)
            yield logits[row : row + 1, :count], estimates[row : row + 1, :count]


def grouped(images, at_once):
    """Neighbours whose prompts, each image's filled up to the most, are at most `at_once`."""
    group, most = [], 0
    for image in images:
        most = max(most, len(image.points))
        if group and (len(group) + 1) * most > at_once:
            yield group
            group, most = [], len(image.points)
        group.append(image)
    if group:
        yield group


class _Known:
    """Answers with predictions that were made in the order of the images."""

    def __init__(self, predictions):
        self._predictions = predictions

    def predict(self, images, sizes, points, labels):
        return next(self._predictions)


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


def table(lines):
    """Rows of cells as Markdown; the first row is the head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_interval(mean, interval, digits=3):
    """A mean and the ends of its interval, as a cell of a table."""
    low, high = interval
    return f"{mean:.{digits}f} [{low:.3f}, {high:.3f}]"


def write_results(out, parts, **record):
    """Print the parts of a report, and write them beside a record of the numbers."""
    text = "\n\n".join(parts) + "\n"
    out.with_suffix(".md").write_text(text)
    out.with_suffix(".json").write_text(json.dumps({**provenance(), **record}, indent=1))
    print(text)
