"""Made-up trials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from supersam.search import Trial
from supersam.space import SubnetSpec


def make_trial(number: int, **values: Any) -> Trial:
    """Trial `number`; values that are no field are metrics."""
    fields: dict[str, Any] = {
        "key": str(number),
        "spec": SubnetSpec((0, 1), (16 + number, 32), (2, 2), 32),
        "stage": "search",
        "status": "complete",
        "num_images": 8,
        "num_objects": 20,
        "seconds": 0.5,
        "searcher": "random",
        "batch": 0,
        "index": number,
        "step": 4,
        "host": "here",
    }
    fields |= {k: v for k, v in values.items() if k in Trial.__dataclass_fields__}
    metrics = {"miou": 0.5, "params_m": 1.0, "flops_g": 2.0}
    metrics |= {k: v for k, v in values.items() if k not in Trial.__dataclass_fields__}
    return Trial(**fields, metrics=metrics)


def numbers(trials: Iterable[Trial]) -> list[tuple[Any, ...]]:
    """Everything of trials but when and where."""
    return [
        (t.key, t.spec, t.stage, t.status, dict(t.metrics), t.num_images, t.batch, t.index)
        for t in trials
    ]
