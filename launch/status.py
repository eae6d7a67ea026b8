"""Where runs stand, and why one failed: python launch/status.py [RUN] [--why] [--follow]"""

import sys

from supersam.config import StatusRun, parse_cli
from supersam.status.show import show

if __name__ == "__main__":
    sys.exit(show(parse_cli(StatusRun)))
