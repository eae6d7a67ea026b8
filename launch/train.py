"""Train a supernet: python launch/train.py --config configs/train/vit_b.yaml --run runs/mine"""

from supersam.cli import main

if __name__ == "__main__":
    main("train")
