"""Images and masks to HDF5 shards: python launch/shard.py --source coco --root DIR --out DIR"""

from supersam.cli import main

if __name__ == "__main__":
    main("shard")
