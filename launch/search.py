"""Find the best subnets of a run: python launch/search.py --run DIR --trials 200 [--nodes 4]"""

from supersam.cli import main

if __name__ == "__main__":
    main("search")
