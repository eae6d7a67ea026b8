"""The order of samples: complete, mixed, and the same for every world size."""

import json
import re
import time

import numpy as np
import pytest

from supersam.data.partition import SampleOrder

WORLD_SIZES = [1, 2, 3, 4, 6, 8, 16]
SHARDS = (100, 0, 257, 33, 64, 1, 505)  # 960 records, blocks of all lengths


def order(shards=(SHARDS,), global_batch=48, **settings):
    return SampleOrder(shards, global_batch, **{"seed": 7, **settings})


def epoch_of(order, number, *, world_size=1, rank=None):
    """All keys of an epoch, of all ranks or of one."""
    first = number * order.batches_per_epoch
    steps = range(first, first + order.batches_per_epoch)
    ranks = range(world_size) if rank is None else [rank]
    return np.concatenate([order.rank_batch(s, r, world_size) for s in steps for r in ranks])


def as_set(keys):
    return {tuple(key) for key in keys.tolist()}


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_ranks_together_see_each_record_once_an_epoch(world_size):
    for epoch in (0, 3):
        parts = [epoch_of(order(), epoch, world_size=world_size, rank=r) for r in range(world_size)]
        assert len({len(part) for part in parts}) == 1
        assert sorted(np.concatenate(parts)[:, 1].tolist()) == list(range(960))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_order_is_the_same_for_every_world_size(world_size):
    np.testing.assert_array_equal(epoch_of(order(), 1, world_size=world_size), epoch_of(order(), 1))


@pytest.mark.parametrize("stop", [0, 1, 19, 20, 33, 59])
def test_a_run_stopped_anywhere_goes_on_alike_on_another_world_size(stop):
    unbroken = [order().batch(step).tolist() for step in range(60)]
    before, after = order(), order()
    resumed = [
        [key for r in range(4) for key in before.rank_batch(step, r, 4).tolist()]
        for step in range(stop)
    ] + [
        [key for r in range(6) for key in after.rank_batch(step, r, 6).tolist()]
        for step in range(stop, 60)
    ]
    assert resumed == unbroken


def test_random_settings_keep_every_record_once():
    rng = np.random.default_rng(0)
    for _ in range(60):
        shards = rng.integers(0, 90, rng.integers(1, 8)).tolist()
        records = sum(shards)
        if records == 0:
            continue
        drawn = order(
            (shards,),
            int(rng.integers(1, records + 1)),
            block_records=int(rng.integers(1, 40)),
            window_blocks=int(rng.integers(1, 6)),
        )
        keys = epoch_of(drawn, int(rng.integers(0, 5)))
        assert len(as_set(keys)) == len(keys) == records - records % drawn.global_batch
        assert keys[:, 1].min() >= 0
        assert keys[:, 1].max() < records


def test_no_two_epochs_or_seeds_have_the_same_order():
    orders = [epoch_of(order(), e)[:, 1].tolist() for e in range(4)]
    orders.append(epoch_of(order(seed=8), 0)[:, 1].tolist())
    assert len({tuple(o) for o in orders}) == 5
    assert list(range(960)) not in orders


def test_another_epoch_drops_other_records():
    dropping = order(global_batch=100)
    dropped = [set(range(960)) - set(epoch_of(dropping, e)[:, 1].tolist()) for e in range(3)]
    assert [len(records) for records in dropped] == [60] * 3
    assert dropped[0] != dropped[1] != dropped[2]


def test_a_batch_mixes_all_lanes():
    shards = (1 << 14,)
    mixed = order((shards,), 64, block_records=32)
    blocks = [len(set((mixed.batch(step)[:, 1] // 32).tolist())) for step in range(64)]
    assert np.mean(blocks) > 55  # of 64 lanes; some lanes share a block by chance


def test_a_rank_reads_few_blocks_at_a_time():
    local = order(((1 << 14,),), 64, block_records=32, window_blocks=4)
    steps = range(128)  # one window of each lane
    blocks = {int(b) for s in steps for b in local.rank_batch(s, 3, 8)[:, 1] // 32}
    assert len(blocks) <= 8 * 5  # 8 lanes; 4 blocks each, and what straddles


def test_neighbours_in_a_lane_are_shuffled():
    lane = order(((1 << 12,),), 1, block_records=32, window_blocks=4)
    steps = np.diff([int(lane.batch(s)[0, 1]) for s in range(1024)])
    assert np.mean(np.abs(steps) == 1) < 0.05


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.5, 4), (1, 0.01)])
def test_each_set_gives_the_share_of_its_weight(weights):
    mixed = order(((400, 100), (300,)), 10, weights=weights)
    for epoch in range(3):
        counts = np.bincount(epoch_of(mixed, epoch)[:, 0], minlength=2)
        assert counts.sum() == 800
        np.testing.assert_allclose(counts, 800 * np.divide(weights, sum(weights)), atol=0.5)


def test_without_weights_every_record_of_every_set_comes_once():
    mixed = order(((400, 100), (300,), (1,)), 9)
    for epoch in range(3):
        assert as_set(epoch_of(mixed, epoch)) == {
            (d, i, epoch) for d, n in enumerate((500, 300, 1)) for i in range(n)
        }


def test_a_set_is_gone_through_before_a_record_is_drawn_again():
    mixed = order(((500,), (90,)), 10, weights=(3, 2), block_records=8)
    keys = np.concatenate([epoch_of(mixed, e) for e in range(6)])
    assert len(as_set(keys)) == len(keys)  # no record twice in a turn
    for dataset, size in ((0, 500), (1, 90)):
        turns = keys[keys[:, 0] == dataset][:, 2]
        whole = np.bincount(turns)[:-1]
        assert (whole == size).all()
        assert len(whole) >= 3


def test_the_sets_of_a_mix_are_spread_over_the_epoch():
    mixed = order(((3000,), (1000,)), 40)
    shares = [np.mean(mixed.batch(step)[:, 0]) for step in range(100)]
    assert np.min(shares) > 0
    assert np.max(shares) < 0.7


@pytest.mark.parametrize(
    ("shards", "settings", "message"),
    [
        (((3,),), {"global_batch": 8}, "3 training images are fewer than the global batch of 8"),
        (((9,), (0, 0)), {"global_batch": 2}, "data set 1 (from 0) has no images"),
        (((90,), (9,)), {"weights": (1,)}, "1 weights for 2 data sets"),
        (((90,), (9,)), {"weights": (1, 0)}, "positive number"),
        (((90,), (9,)), {"weights": (1, 1e-9)}, "no record in an epoch of 99; raise it"),
    ],
)
def test_an_order_that_cannot_be_is_refused(shards, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        order(shards, **settings)


def test_a_world_size_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"world_size=5 does not divide the global batch of 48"):
        order().rank_batch(0, 0, 5)


def test_the_description_survives_a_checkpoint_and_tells_what_changed():
    saved = json.loads(json.dumps(order().describe()))
    order().require_same(saved)
    with pytest.raises(ValueError, match="global_batch was 48 and is 96, lanes was 48 and is 96"):
        order(global_batch=96).require_same(saved)


def test_the_order_does_not_change_between_versions():
    """Golden values: a change here needs a new ORDER_VERSION."""
    first = order().batch(0)[:8, 1].tolist()
    later = order(((400, 100), (300,)), 16, weights=(1, 2)).batch(123)[:4].tolist()
    assert (first, later) == GOLDEN


def test_a_million_images_are_ordered_in_a_moment():
    large = order(([1430] * 700,), 256)
    start = time.process_time()
    large.batch(large.batches_per_epoch * 3 + 17)
    assert time.process_time() - start < 0.5  # 0.03 s on one core of a 2-core machine


GOLDEN = (
    [692, 38, 40, 61, 166, 177, 946, 949],
    [[1, 166, 3], [1, 121, 3], [1, 250, 3], [1, 177, 4]],
)
