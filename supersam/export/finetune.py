"""Fine-tune one subnet alone from the supernet's weights, in a run like any other."""

from __future__ import annotations

import logging

from supersam.config import ExportRun, TrainCluster, TrainRun, UserError, merge
from supersam.config.files import RESULTS, SPACE_FILE
from supersam.runs.folder import prepare_run_folder
from supersam.runs.weights import WeightSource
from supersam.space import SubnetSpec

logger = logging.getLogger(__name__)

_LR_RATIO = 0.1  # of the supernet's peak rate: the weights are trained already
_FAR = 10**9


def peak_rate(run: ExportRun, train_run: TrainRun) -> float:
    """Peak learning rate of the fine-tuning."""
    return run.finetune_lr if run.finetune_lr is not None else _LR_RATIO * train_run.optim.lr


def prepare_finetune(
    train_run: TrainRun, source: WeightSource, spec: SubnetSpec, run: ExportRun
) -> TrainRun:
    """Prepare the run that fine-tunes `spec`, in a folder of its own below `results`.

    Raises UserError where that folder holds a fine-tuning with other settings.
    """
    steps, rate = run.finetune_steps, peak_rate(run, train_run)
    place = train_run.folder / RESULTS / "finetune"
    spec_file = place / f"{spec.key()}.json"
    try:
        place.mkdir(parents=True, exist_ok=True)
        spec.write(spec_file)
    except OSError as fault:
        raise UserError(f"cannot write to {place}: {fault}") from fault
    changes = {
        "name": f"finetune-{spec.key()}",
        "run": place / f"{spec.key()}-from-{source.step:06d}-steps-{steps}-lr-{rate:g}",
        "dry_run": False,
        "cluster": TrainCluster().model_dump(),
        "model": {"checkpoint": source.path or train_run.model.checkpoint},
        "space": {"file": train_run.folder / SPACE_FILE},
        "optim": {
            "steps": steps,
            "lr": rate,
            "warmup_steps": min(train_run.optim.warmup_steps, steps // 10),
        },
        "prioritize": {"when": "off"},
        "sandwich": {"only": str(spec_file), "largest_only_steps": 0},
        "loss": {"distill": False},  # there is no larger subnet to learn from
        "engine": {"device": run.device, "threads": run.threads or train_run.engine.threads},
        "checkpoint": {"validate_every_steps": _FAR, "pin": ()},  # once, at the end
    }
    tuned = TrainRun.model_validate(merge(train_run.model_dump(), changes))
    prepare_run_folder(tuned)
    return tuned


def finetune(run: TrainRun) -> None:
    """Train the prepared run in this process, or resume it.

    Raises InterruptedRunError after a signal to stop, once it has saved.
    """
    from supersam.training.session import train  # needs deepspeed; a plain export does not

    logger.info("fine-tuning in %s", run.folder)
    train(run)
