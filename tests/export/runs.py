"""A tiny run to export from. Imports no deepspeed."""

from pathlib import Path

from supersam.config import ExportRun, TrainRun

TINY = {
    "name": "tiny", "embed_dim": 96, "depth": 4, "num_heads": 3, "global_layers": [1, 3],
    "image_size": 80, "window_size": 3, "attention": "reference",
}  # fmt: skip


def tiny_export_run(folder: Path, train: Path, val: Path) -> TrainRun:
    return TrainRun.model_validate(
        {
            "run": folder,
            "name": "tiny",
            "model": TINY,
            "space": {"removable": [0, 1, 2], "elastic_heads": True, "width_multiple": 32},
            "data": {"train": [train], "val": [val], "workers": 0, "prompts_per_image": 3},
            "optim": {"steps": 3, "lr": 1e-3, "warmup_steps": 1, "global_batch": 4},
            "engine": {"device": "cpu", "threads": 1, "log_every": 1},
            "checkpoint": {"overlay_images": 0},
        }
    )


def export_of(run: TrainRun, out: Path, /, **changes: object) -> ExportRun:
    values = {"run": run.folder, "out": out, "subnet": "smallest", "device": "cpu"}
    return ExportRun.model_validate({**values, **changes})
