"""Find the best subnets of a run: python launch/search.py --run DIR --trials 200 [--nodes 4]"""

import sys

from supersam.config import SearchRun, exit_code, parse_cli

if __name__ == "__main__":
    run = parse_cli(SearchRun)
    from supersam.cluster.search.job import submit_search  # only now: --help must not wait for it

    sys.exit(exit_code(submit_search, run))
