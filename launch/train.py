"""Train a supernet: python launch/train.py --config configs/train/vit_b.yaml --run runs/mine"""

import sys
from pathlib import Path

from supersam.cluster import submit
from supersam.config import TrainRun, parse_cli

DEMO = Path(__file__).parents[1] / "configs" / "train" / "demo.yaml"

if __name__ == "__main__":
    sys.exit(submit(parse_cli(TrainRun, default_config=DEMO, recall=True)))
