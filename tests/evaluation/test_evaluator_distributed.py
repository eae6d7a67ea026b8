"""Two real ranks against one."""

import pickle
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from supersam.data.sample import EvalImage
from supersam.evaluation import evaluate
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


def evaluate_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    predictor, images = scene()
    result = evaluate(predictor, images[rank::2])
    Path(folder, f"rank{rank}").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def test_two_ranks_get_the_result_of_one(tmp_path: Path):
    # forked, not spawned: importing torch twice more would take longer than the test
    mp.start_processes(evaluate_share, args=(str(tmp_path),), nprocs=2, start_method="fork")
    predictor, images = scene()
    alone = evaluate(predictor, images)
    for rank in range(2):
        result = pickle.loads((tmp_path / f"rank{rank}").read_bytes())
        assert result == alone
        np.testing.assert_array_equal(result.objects.iou_single, alone.objects.iou_single)
        np.testing.assert_array_equal(result.objects.sample_id, alone.objects.sample_id)
