"""Images and masks to HDF5 shards: python launch/shard.py --source coco --root DIR --out DIR"""

import sys

from supersam.config import ShardRun, exit_code, parse_cli

if __name__ == "__main__":
    run = parse_cli(ShardRun)
    from supersam.data.command import run_shard  # only now: --help must not wait for it

    sys.exit(exit_code(run_shard, run))
