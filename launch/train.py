"""Train a supernet: python launch/train.py --config configs/train/vit_b.yaml --run runs/mine"""

import sys

from supersam.cluster import submit
from supersam.config import DEMO, TrainRun, parse_cli

if __name__ == "__main__":
    sys.exit(submit(parse_cli(TrainRun, default_config=DEMO, recall=True)))
