"""Score a subnet on held-out images: python launch/evaluate.py --run DIR --subnet smallest"""

import sys

from supersam.config import EvaluateRun, exit_code, parse_cli

if __name__ == "__main__":
    run = parse_cli(EvaluateRun)
    from supersam.evaluation.command import run_evaluate  # only now: --help must not wait for torch

    sys.exit(exit_code(run_evaluate, run))
