"""A page about a search, or several: python launch/report.py RUN/results/search"""

import sys

from supersam.config import ReportRun, exit_code, parse_cli

if __name__ == "__main__":
    run = parse_cli(ReportRun)
    from supersam.search.report.page import run_report  # only now: --help must not wait for torch

    sys.exit(exit_code(run_report, run))
