"""Masks of an image: python launch/predict.py IMAGE --export DIR --box 10,20,200,180 --out FILE"""

from supersam.cli import main

if __name__ == "__main__":
    main("predict")
