"""launch/evaluate.py: what it refuses, and the file that it leaves."""

import pytest

from supersam.config import EvaluateRun, UserError
from supersam.training.command import run_evaluate


def evaluation_of(run, **changes):
    values = {"run": run.folder, "subnet": "smallest", "device": "cpu", "images": 2}
    return EvaluateRun.model_validate({**values, **changes})


def test_a_folder_named_twice_is_refused_before_anything_is_predicted(trained, held_out_shards):
    with pytest.raises(UserError, match="share 5 of 5 images"):
        run_evaluate(evaluation_of(trained, data=[held_out_shards, held_out_shards]))
