"""The bootstrap interval: against a plain loop, and against what it promises."""

import numpy as np
import pytest

from supersam.runtime.bootstrap import bootstrap_interval


def scores_of_images(rng: np.random.Generator, *, num_images: int, spread: float):
    """Objects whose scores share most of their noise with their image; the true mean is 0.7."""
    image_ids = np.repeat(np.arange(num_images), rng.integers(1, 30, num_images))
    image_noise = rng.normal(0, spread, num_images)[image_ids]
    return 0.7 + image_noise + rng.normal(0, 0.02, len(image_ids)), image_ids


def test_interval_is_that_of_a_plain_loop_over_resampled_images():
    values, image_ids = scores_of_images(np.random.default_rng(0), num_images=12, spread=0.1)
    groups = [values[image_ids == i] for i in range(12)]
    rng = np.random.default_rng(5)
    means = [
        np.concatenate([groups[i] for i in rng.integers(12, size=12)]).mean() for _ in range(200)
    ]
    low, high = bootstrap_interval(values, image_ids, rng=np.random.default_rng(5), resamples=200)
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5]), rtol=1e-12)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values, image_ids = scores_of_images(rng, num_images=60, spread=0.1)
        low, high = bootstrap_interval(values, image_ids, rng=rng, resamples=300)
        covered += low < 0.7 < high
    assert 0.88 < covered / 200 < 0.99


def test_interval_is_wider_than_one_that_takes_objects_for_independent():
    values, image_ids = scores_of_images(np.random.default_rng(2), num_images=50, spread=0.1)
    clustered = bootstrap_interval(values, image_ids, rng=np.random.default_rng(0))
    naive = bootstrap_interval(values, np.arange(len(values)), rng=np.random.default_rng(0))
    assert np.diff(clustered) > 2 * np.diff(naive)


def test_interval_does_not_depend_on_the_block_size(monkeypatch):
    values, image_ids = scores_of_images(np.random.default_rng(3), num_images=20, spread=0.1)
    whole = bootstrap_interval(values, image_ids, rng=np.random.default_rng(0))
    monkeypatch.setattr("supersam.runtime.bootstrap._DRAWS_PER_BLOCK", 64)
    assert bootstrap_interval(values, image_ids, rng=np.random.default_rng(0)) == whole


def test_one_image_has_no_interval():
    with pytest.raises(ValueError, match="1 group.* 2 or more"):
        bootstrap_interval(np.ones(3), np.zeros(3, dtype=np.int64), rng=np.random.default_rng(0))
