"""What a training or a design says when it has ended: where the result is, what comes next."""

from __future__ import annotations

from supersam.config import DesignRun, TrainRun, read_yaml
from supersam.config.files import DESIGN_CONFIG, RUN_FILE, SUBNET_FILE, TENSORBOARD
from supersam.config.shipped import shipped_configs
from supersam.runtime.next_command import command, export_folder, next_line


def print_ending(run: TrainRun | DesignRun) -> None:
    """Print the last lines of a run that is complete; none where the result is printed as JSON."""
    if isinstance(run, TrainRun):
        print(_end_of_training(run), flush=True)
    elif not run.json_:
        print(_end_of_design(run), flush=True)


def _end_of_training(run: TrainRun) -> str:
    lines = [f"{run.folder}: trained to step {run.optim.steps}"]
    if (run.folder / TENSORBOARD).is_dir():
        lines.append(f"curves: {command('monitor', '--logdir', run.folder)}")
    if run.sandwich.only is not None:
        subnet, out = run.folder / SUBNET_FILE, export_folder(run.folder)
        lines.append(next_line("export", "--run", run.folder, "--subnet", subnet, "--out", out))
    else:
        held_out = () if run.data.val or run.data.source == "synthetic" else ("--data", "DIR")
        lines.append(next_line("search", "--run", run.folder, *held_out))
    return "\n".join(lines)


def _end_of_design(run: DesignRun) -> str:
    """Return the training with that space, with the settings of the run that gave the weights."""
    config, of_weights = run.folder / DESIGN_CONFIG, run.checkpoint / RUN_FILE
    if of_weights.is_file():
        settings: tuple[object, ...] = ("--config", of_weights, "--config", config)
    else:
        model = read_yaml(config)["model"]["name"]
        known = ("--config", model) if model in shipped_configs() else ()
        settings = (*known, "--config", config, "--data.train", *run.data)
    name = run.out.parent.name or run.out.stem
    return next_line("train", *settings, "--run", f"runs/{name}-supernet")
