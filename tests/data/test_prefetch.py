"""Batches come to the device whole, in order and once, whenever the next is asked for ahead."""

import pytest
import torch

from supersam.data.loader import DeviceBatches
from supersam.data.sample import Batch


def numbered(count: int) -> list[Batch]:
    def batch(number: int) -> Batch:
        return Batch(
            images=torch.full((1, 3, 8, 8), number, dtype=torch.uint8),
            sizes=torch.full((1, 2), 8),
            points=torch.zeros(1, 1, 2, 2),
            labels=torch.ones(1, 1, 2, dtype=torch.int64),
            masks=torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
            valid=torch.ones(1, 1, dtype=torch.bool),
            sample_ids=torch.tensor([number]),
            num_bad=number,
        )

    return [batch(number) for number in range(count)]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_batches_come_in_order_and_once(name, ahead):
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device(name)
    batches, seen = DeviceBatches(iter(numbered(5)), device), []
    for batch in batches:
        for _ in range(ahead):  # a second call before the batch is used changes nothing
            batches.copy_ahead()
        assert batch.images.device.type == name
        assert int(batch.images[0, 0, 0, 0]) == int(batch.sample_ids) == batch.num_bad
        seen.append(batch.num_bad)
    assert seen == [0, 1, 2, 3, 4]
