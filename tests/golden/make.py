"""Golden samples: what the version that is first on PYTHONPATH writes. Run once, with that version.

    cd EMPTY_FOLDER; PYTHONPATH=OLD python make.py OLD

Weights are short patterns repeated, so that 16 MB of a mask decoder compress to almost nothing, and
training moves the prompt encoder alone, so that they stay so. Imports nothing of the project: the
commands are those that a user types.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

SIZES = {"embed_dim": 32, "depth": 4, "num_heads": 2, "image_size": 64, "window_size": 2}
GLOBAL_LAYERS = [1, 3]
PATTERN, LONG_PATTERN, LARGE = 61, 509, 20_000
"""Distinct values of a large tensor and of another one; elements that make a tensor large."""
STOP_AT = 6
"""The step at which the interrupted training is interrupted, or a few later."""
CONFIG = {
    "model": {"name": "tiny", **SIZES, "global_layers": GLOBAL_LAYERS, "checkpoint": "start.pth"},
    "space": {"removable": [1, 2], "width_multiple": 16, "elastic_heads": True},
    "data": {"train": ["shards/train"], "val": ["shards/val"], "workers": 0},
    "optim": {
        "steps": 30, "lr": 1.0e-2, "warmup_steps": 2, "global_batch": 2,
        "trainable": ["prompt_encoder"],
    },
    "engine": {"device": "cpu", "threads": 1, "log_every": 1},
    "checkpoint": {"every_steps": 100, "validate_every_steps": 100, "overlay_images": 0},
    "watchdog": {"heartbeat_s": 0.5},
}  # fmt: skip
SEARCH = ["--trials", "8", "--searcher", "nsga2", "--population", "4", "--chunk", "2"]
SEARCH += ["--protocol.images", "6", "--protocol.images-per-batch", "2", "--device", "cpu"]
SEARCH += ["--threads", "1", "--cluster", "inline"]
DESIGN = ["--data", "shards/train", "--checkpoint", "start.pth", "--out", "design/space.yaml"]
DESIGN += ["--calibration.images", "4", "--calibration.batch", "2", "--threads", "1"]
DESIGN += ["--limits.width-multiple", "16", "--limits.max-miou-drop", "1.0", "--device", "cpu"]


def main(old: Path) -> None:
    """Write every sample and what is expected of it into the current folder."""
    torch.save(patterned_weights(), "start.pth")
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    for part, images, seed in (("train", 12, 0), ("val", 8, 1)):
        drawn = {"images": images, "size-px": 64, "max-objects": 4, "seed": seed}
        flags = [word for name, value in drawn.items() for word in (f"--synthetic.{name}", value)]
        launch(old, "shard", "--source", "synthetic", "--out", f"shards/{part}", *flags)
    interrupt(old)
    shutil.copytree("run", "interrupted/run")
    launch(old, "train", "--run", "run")
    evaluated = launch(old, "evaluate", "--run", "run", "--device", "cpu", "--json")
    launch(old, "search", "--run", "run", *SEARCH)
    launch(old, "design", *DESIGN)
    launch(
        old, "export", "--run", "run", "--subnet", "smallest", "--out", "export", "--device", "cpu"
    )
    expected = {
        "written_by": written_by(),
        "losses": losses(Path("run")),
        "evaluation": json.loads(evaluated)["prompts"],
        "masks": masks(Path("export")),
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    for name in ("shards", "interrupted", "run", "design", "export", "start.pth"):
        pack(Path(name))


def pack(path: Path) -> None:
    """Compress a sample, without pictures, logs, TensorBoard's files and the report."""
    left_out = {"figures", "tensorboard", "report.html", "logs"}
    with tarfile.open(f"{path.stem}.tar.xz", "w:xz", preset=9) as archive:
        archive.add(path, filter=lambda e: None if Path(e.name).name in left_out else e)


def patterned_weights() -> dict[str, torch.Tensor]:
    """Weights of a tiny Sam in segment-anything's format; every tensor a repeated pattern."""
    generator = torch.Generator().manual_seed(1)  # masks that are neither empty nor full
    return {
        name: pattern(name, tensor, generator) for name, tensor in build_sam().state_dict().items()
    }


def pattern(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count = PATTERN if like.numel() > LARGE else LONG_PATTERN
    fan_in = like[0].numel() if like.ndim > 1 else 16
    values = torch.randn(count, generator=generator) / math.sqrt(fan_in)
    repeated = values.repeat(like.numel() // count + 1)[: like.numel()].reshape(like.shape)
    return repeated + 1 if like.ndim == 1 and name.endswith("weight") else repeated


def build_sam() -> Sam:
    """A Sam of the tiny sizes, as segment-anything builds it."""
    grid = SIZES["image_size"] // 16
    encoder = ImageEncoderViT(
        img_size=SIZES["image_size"], embed_dim=SIZES["embed_dim"], depth=SIZES["depth"],
        num_heads=SIZES["num_heads"], out_chans=256, use_rel_pos=True,
        window_size=SIZES["window_size"], global_attn_indexes=tuple(GLOBAL_LAYERS),
    )  # fmt: skip
    prompts = PromptEncoder(
        embed_dim=256, image_embedding_size=(grid, grid), mask_in_chans=16,
        input_image_size=(SIZES["image_size"], SIZES["image_size"]),
    )  # fmt: skip
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return Sam(encoder, prompts, MaskDecoder(transformer_dim=256, transformer=transformer))


def launch(old: Path, command: str, *words: object) -> str:
    """What a command of the old version prints on stdout."""
    script = old / "launch" / f"{command}.py"
    done = subprocess.run(
        [sys.executable, script, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def interrupt(old: Path) -> None:
    """Begin the training and end it with Ctrl-C after a few steps: it saves."""
    script = old / "launch" / "train.py"
    words = ["--config", "config.yaml", "--run", "run"]
    process = subprocess.Popen([sys.executable, script, *words])
    log = Path("run/logs/train-00000.log")
    while not (log.exists() and f"step {STOP_AT}" in log.read_text()):
        assert process.poll() is None, "the training ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait()


def losses(run: Path) -> dict[str, dict[str, float]]:
    """The losses of each subnet, by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        str(line["step"]): {k: v for k, v in line.items() if k.startswith("train/loss/")}
        for line in lines
        if any(k.startswith("train/loss/") for k in line)
    }


def masks(folder: Path) -> str:
    """The three masks of one point by the exported subnet, one bit a pixel, as hexadecimal."""
    from segment_anything import SamPredictor

    from supersam.export import load_subnet

    predictor = SamPredictor(load_subnet(folder))
    predictor.set_image(picture())
    found, _, _ = predictor.predict(np.array([[30, 30]]), np.array([1]))
    return np.packbits(found).tobytes().hex()


def picture() -> NDArray[np.uint8]:
    """A bright disc on a dark slope, (64, 64, 3)."""
    y, x = np.mgrid[:64, :64]
    grey = np.where((x - 30) ** 2 + (y - 30) ** 2 < 200, 200, x + y)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def written_by() -> dict[str, str]:
    """What must be the same for numbers to be the same to the last bit."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "cpu": f"{platform.machine()} {capability}"}


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    main(Path(sys.argv[1]))
