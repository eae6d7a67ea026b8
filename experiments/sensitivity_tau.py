"""Does the layer scan foretell effect? Predicted against measured mIoU of random layer sets.

python -m experiments.sensitivity_tau --run runs/nuclei_vit_t --calibration data/nuclei/train \
    --data data/nuclei/val128 --out runs/design/sensitivity_nuclei

Predictions add what each layer costs alone on calibration images of the training set; measured is
the mIoU on held-out images. Kendall's tau with a 95 % interval over resampled sets.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from experiments.trained import HeldOut, Journal, calibration_of, load_trained, table, write_results
from supersam.config.design import ScanConfig
from supersam.design import scan_sensitivity
from supersam.design.cache import EffectCache
from supersam.design.sensitivity import cache_content

RESAMPLES = 2000


def main():
    args = parse_args()
    torch.set_num_threads(1)
    supernet, run = load_trained(args.run)
    shape = supernet.space.shape
    calibration = calibration_of(
        run, args.calibration, images=args.calibration_images, side=shape.image_size
    )
    content = cache_content(supernet, calibration)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cache = EffectCache(args.out.with_suffix(".scan.jsonl"), content)
    found = scan_sensitivity(
        supernet, calibration, ScanConfig(max_removed=args.max_removed), cache=cache
    )
    held_out = HeldOut(args.data, side=shape.image_size, images=args.images)
    journal = Journal(args.out.with_suffix(".jsonl"))
    rng = np.random.default_rng(args.seed)
    sets = draw_sets(rng, shape.depth, args.sets, largest=args.max_layers)
    rows = []
    whole = supernet.space.largest()
    for removed in [(), *sets]:
        measured = journal.get(
            f"{args.seed} {list(removed)}",
            lambda removed=removed: held_out.score(supernet, whole.without(*removed)),
        )
        rows.append(
            {
                "removed": list(removed),
                "measured": measured["miou"],
                "drop": found.predicted_drop(removed),
                "distance": found.predicted_distance(removed),
            }
        )
    report(args, found, rows)


def draw_sets(rng, depth, count, *, largest):
    """Different sets of 1 to `largest` layers, sizes evenly."""
    found = []
    while len(found) < count:
        size = int(rng.integers(1, largest + 1))
        removed = tuple(sorted(rng.choice(depth, size, replace=False).tolist()))
        if removed not in found:
            found.append(removed)
    return found


def tau(rows, predicted, rng):
    """Kendall's tau of predicted effect and measured loss, and its bootstrap interval."""
    x = np.array([predicted(row) for row in rows])
    y = -np.array([row["measured"] for row in rows])
    draws = []
    for _ in range(RESAMPLES):
        some = rng.integers(len(x), size=len(x))
        draws.append(kendalltau(x[some], y[some]).statistic)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return {"tau": float(kendalltau(x, y).statistic), "low": float(low), "high": float(high)}


def report(args, found, rows):
    sets = rows[1:]
    rng = np.random.default_rng(0)
    taus = {
        "sum of mIoU lost alone": tau(sets, lambda row: row["drop"], rng),
        "sum of embedding distances alone": tau(sets, lambda row: row["distance"], rng),
        "number of layers removed (control)": tau(sets, lambda row: len(row["removed"]), rng),
    }
    lines = [["prediction", "Kendall's tau [95 %]"]]
    lines += [
        [name, f"{t['tau']:.2f} [{t['low']:.2f}, {t['high']:.2f}]"] for name, t in taus.items()
    ]
    layers = [["layer", *range(len(found.alone))]]
    layers.append(["mIoU lost alone", *(f"{found.whole.miou - d.miou:.3f}" for d in found.alone)])
    layers.append(["embedding distance", *(f"{d.embedding_distance:.2f}" for d in found.alone)])
    greedy = [["removed, one after the other", *found.greedy_order]]
    greedy.append(["mIoU left", *(f"{d.miou:.3f}" for d in found.greedy)])
    note = (
        f"Whole model: {found.whole.miou:.3f} on the calibration set, {rows[0]['measured']:.3f} on "
        f"held-out images. {len(sets)} sets of 1 to {args.max_layers} layers."
    )
    parts = [table(lines), table(layers), table(greedy), note]
    write_results(args.out, parts, tau=taus, rows=rows)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--images", type=int, default=150, help="held-out images")
    parser.add_argument("--sets", type=int, default=30, help="random layer sets")
    parser.add_argument("--max-layers", type=int, default=5, help="layers of a set at most")
    parser.add_argument("--max-removed", type=int, default=6, help="greedy removals")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
