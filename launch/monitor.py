"""TensorBoard on loopback, with the ssh tunnel line: python launch/monitor.py [--logdir DIR]"""

import sys

from supersam.config import MonitorRun, parse_cli
from supersam.status.tensorboard import monitor

if __name__ == "__main__":
    sys.exit(monitor(parse_cli(MonitorRun)))
