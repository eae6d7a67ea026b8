"""Give a subnet away: python launch/export.py --run DIR --subnet smallest --out DIR --onnx"""

import sys

from supersam.config import ExportRun, exit_code, parse_cli

if __name__ == "__main__":
    run = parse_cli(ExportRun)
    from supersam.export.command import run_export  # only now: --help must not wait for torch

    sys.exit(exit_code(run_export, run))
