"""Accuracy of subnets that were not evaluated, from those that were: ridge regression on genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supersam.space import SearchSpace, SubnetSpec

Floats = NDArray[np.float64]
_PENALTIES = 10.0 ** np.arange(-4, 4)
_FOLDS = 5
FEWEST = 20
"""Trials that a predictor needs."""


@dataclass(frozen=True)
class PredictorError:
    """How far predictions were off on trials that the predictor had not seen."""

    num_trials: int
    mae: float
    """Mean absolute error."""
    kendall_tau: float
    """Rank correlation with what was measured, -1 to 1."""


class GenePredictor:
    """A linear model of each gene, its square and its layer's presence; 5 numbers per layer."""

    def __init__(self, space: SearchSpace, specs: Sequence[SubnetSpec], values: Floats) -> None:
        """Fit. values: (N,); the penalty is the one of least leave-one-out error."""
        self._space = space
        features = self._features(specs)
        self._mean, self._scale = features.mean(0), features.std(0) + 1e-9
        self._offset = float(values.mean())
        x, y = (features - self._mean) / self._scale, values - self._offset
        fits = [_ridge(x, y, penalty) for penalty in _PENALTIES]
        self._weights = min(fits, key=lambda fit: fit[1])[0]

    def predict(self, specs: Sequence[SubnetSpec]) -> Floats:
        """(N,) predicted values."""
        x = (self._features(specs) - self._mean) / self._scale
        predicted: Floats = x @ self._weights + self._offset
        return predicted

    def _features(self, specs: Sequence[SubnetSpec]) -> Floats:
        shape = self._space.shape
        rows = np.zeros((len(specs), shape.depth, 5))
        dims = np.zeros((len(specs), 4 if self._space.resolutions else 2))
        for row, dim, spec in zip(rows, dims, specs, strict=True):
            width = np.array(spec.mlp_widths) / shape.mlp_width
            heads = np.array(spec.heads) / shape.num_heads
            row[list(spec.layers)] = np.stack(
                (np.ones(len(width)), width, width**2, heads, heads**2), axis=1
            )
            dim[:2] = spec.embed_dim / shape.embed_dim, (spec.embed_dim / shape.embed_dim) ** 2
            if self._space.resolutions:
                side = self._space.input_px(spec) / shape.image_size
                dim[2:] = side, side**2
        return np.concatenate((rows.reshape(len(specs), -1), dims), axis=1)


def held_out_error(
    space: SearchSpace, specs: Sequence[SubnetSpec], values: Floats
) -> PredictorError:
    """The error of five predictors, each on the fifth that it was not fitted on."""
    fold = np.random.default_rng(0).permutation(len(specs)) % _FOLDS
    predicted = np.zeros(len(specs))
    for number in range(_FOLDS):
        known = [spec for spec, f in zip(specs, fold, strict=True) if f != number]
        unseen = [spec for spec, f in zip(specs, fold, strict=True) if f == number]
        model = GenePredictor(space, known, values[fold != number])
        predicted[fold == number] = model.predict(unseen)
    mae = float(np.abs(predicted - values).mean())
    return PredictorError(len(specs), mae, kendall_tau(predicted, values))


def kendall_tau(first: Floats, second: Floats) -> float:
    """Rank correlation: pairs in the same order minus pairs in the other, over all not tied."""
    signs = [np.sign(values[:, None] - values[None]) for values in (first, second)]
    norm = np.sqrt((signs[0] != 0).sum() * float((signs[1] != 0).sum()))
    return float((signs[0] * signs[1]).sum() / norm) if norm > 0 else 0.0


def _ridge(x: Floats, y: Floats, penalty: float) -> tuple[Floats, float]:
    """Weights, and the mean squared leave-one-out error in closed form."""
    inverse = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1]))
    weights = inverse @ x.T @ y
    leverage = np.einsum("ij,jk,ik->i", x, inverse, x)
    residual = (y - x @ weights) / np.maximum(1e-6, 1 - leverage)
    return weights, float((residual**2).mean())
