"""Design a space: python launch/design.py --data DIR --checkpoint FILE_OR_RUN --out space.yaml"""

import sys

from supersam.cluster import submit
from supersam.config import DesignRun, parse_cli

if __name__ == "__main__":
    sys.exit(submit(parse_cli(DesignRun)))
