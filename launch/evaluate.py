"""Score a subnet on held-out images: python launch/evaluate.py --run DIR --subnet smallest"""

from supersam.cli import main

if __name__ == "__main__":
    main("evaluate")
