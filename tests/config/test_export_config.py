from __future__ import annotations

import pytest
from pydantic import ValidationError

from supersam.config import ExportRun


def test_a_rate_without_steps_is_refused():
    with pytest.raises(
        ValidationError, match=r"--finetune-lr 0\.1 needs a fine-tuning; add --finetune-steps"
    ):
        ExportRun(run="runs/a", out="exports/a", finetune_lr=0.1)
    assert ExportRun(run="runs/a", out="exports/a", finetune_lr=0.1, finetune_steps=1)
