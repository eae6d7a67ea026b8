"""An evaluator whose scores follow from a subnet's sizes: for what depends on no model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from supersam.search.evaluator import SubnetEvaluator

OBJECTS = 3
"""Of each image."""


class ClosedForm(SubnetEvaluator):
    """The real evaluator's costs, limits, rungs and trials; neither weights nor images are read."""

    def _load(self, source: Any) -> None:
        """There is no model."""

    def _load_images(self, *, originals: bool) -> list[Any]:
        protocol = self._search.protocol
        ids = np.arange(protocol.images or 8)
        size = protocol.images_per_batch
        return [SimpleNamespace(sizes=ids[i : i + size]) for i in range(0, len(ids), size)]

    def _score_batch(self, running: list[Any], batch: Any, cache: Any) -> None:
        """Larger is better, and each image has its own opinion of each subnet."""
        for one in running:
            spec = one.request.spec
            share = sum(spec.mlp_widths) / (sum(self._space.largest().mlp_widths))
            genes = (*spec.layers, *spec.mlp_widths, *spec.heads, spec.embed_dim)
            for image in batch.sizes.tolist():
                noise = np.random.default_rng([image, *genes]).random(OBJECTS)
                kinds = len(self._search.protocol.prompts)
                one.ious.append(np.tile(0.7 * share + 0.3 * noise, (kinds, 1)))
                one.groups.append(np.full(OBJECTS, image))
            one.num_images += len(batch.sizes)


@contextlib.contextmanager
def dying(calls: int) -> Iterator[None]:
    """Within the block the process is interrupted in the middle of its `calls`-th chunk."""
    evaluate, left = SubnetEvaluator.evaluate, [calls]

    def die(self: SubnetEvaluator, chunk: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return evaluate(self, chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SubnetEvaluator, "evaluate", die)
        yield
