"""What reading a training sample costs, part by part.

python benchmarks/sample_cost.py [--data DIR] [--samples 64] [--clock wall] [--gate]

Without --data, synthetic shards are made first. `index` reads the record's tables, its bytes and
their checksums; `image` decodes the picture, `masks` the run lengths of the objects asked for;
`rest` is resizing, cutting and drawing prompts. With --gate, an index above 5 % of image + masks
exits with 1.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from in_turn import CLOCKS, print_record

from supersam.config import DataConfig, SourceConfig, SyntheticConfig
from supersam.data.convert import convert
from supersam.data.dataset import ShardDataset
from supersam.data.images import decode_rgb
from supersam.data.rle import decode_runs
from supersam.data.shards import ShardReader

LIMIT = 0.05


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or synthetic_shards(Path(folder) / "shards", args.size_px)
        parts = measure(ShardReader(data), args)
    medians = {name: statistics.median(values) * 1e3 for name, values in parts.items()}
    share = medians["index"] / (medians["image"] + medians["masks"])
    for name, value in medians.items():
        print(f"{name:8}{value:10.3f} ms")
    print(f"index and integrity: {share:.1%} of decoding")
    print_record("sample_cost", {"median_ms": medians, "index_share": share})
    return int(args.gate and share > LIMIT)


def measure(reader, args):
    """Seconds of each part, for each sample after a first pass that opens and caches the files."""
    config = DataConfig(prompts_per_image=args.prompts)
    dataset = ShardDataset([reader], config, side=args.side, seed=0)
    now = CLOCKS[args.clock]
    parts = {"index": [], "image": [], "masks": [], "rest": []}
    for index in range(args.samples):
        index %= reader.num_images
        dataset[0, index, 0]
        clock = [now()]
        record = reader.read_image(index)
        wanted = range(min(args.prompts, len(record.masks)))
        rles = reader.read_masks(index, wanted)
        clock.append(now())
        decode_rgb(record.image)
        clock.append(now())
        for rle in rles:
            decode_runs(rle, record.height, record.width)
        clock.append(now())
        dataset[0, index, 1]
        clock.append(now())
        spent = [after - before for before, after in zip(clock, clock[1:], strict=False)]
        spent[3] -= sum(spent[:3])  # the whole sample without the parts above
        for name, value in zip(parts, spent, strict=True):
            parts[name].append(value)
    return parts


def synthetic_shards(folder, size_px):
    synthetic = SyntheticConfig(images=32, size_px=size_px)
    convert(SourceConfig(kind="synthetic", synthetic=synthetic), folder, workers=1)
    return folder


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of shards")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8, help="masks asked for")
    parser.add_argument("--side", type=int, default=1024, help="input side of the model, pixels")
    parser.add_argument("--size-px", type=int, default=1024, help="of the synthetic images")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a busy machine")
    parser.add_argument("--gate", action="store_true", help="exit with 1 above 5 %%")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
