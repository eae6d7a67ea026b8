"""Two real ranks against one."""

import pickle
from pathlib import Path

import numpy as np
import torch

from supersam.data.sample import EvalImage
from supersam.evaluation import evaluate
from supersam.runtime.distributed import close_world, init_world
from tests.distributed.ranks import run_ranks
from tests.evaluation.scenes import Replay, eval_image, smooth_logits

NUM_OBJECTS = {11: 4, 2: 1, 8: 7, 5: 0, 9: 3}


def scene() -> tuple[Replay, list[EvalImage]]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    truth, logits = (
        {k: smooth_logits(n, cells=32, generator=generator) for k, n in NUM_OBJECTS.items()}
        for _ in range(2)
    )
    images = [
        eval_image(v[:, 0] > 0, side=32, size=(32, 32), sample_id=k) for k, v in truth.items()
    ]
    return Replay(logits), images


def evaluate_share(folder: Path) -> None:
    world = init_world(torch.device("cpu"))
    predictor, images = scene()
    result = evaluate(predictor, images[world.rank :: 2])
    (folder / f"rank{world.rank}").write_bytes(pickle.dumps(result))
    close_world()


def test_two_ranks_get_the_result_of_one(tmp_path: Path):
    assert run_ranks(2, evaluate_share, tmp_path) == [0, 0]
    predictor, images = scene()
    alone = evaluate(predictor, images)
    for rank in range(2):
        result = pickle.loads((tmp_path / f"rank{rank}").read_bytes())
        assert result == alone
        np.testing.assert_array_equal(result.objects.iou_single, alone.objects.iou_single)
        np.testing.assert_array_equal(result.objects.sample_id, alone.objects.sample_id)
