"""Shards written by each released schema stay readable."""

import json
from pathlib import Path

import pytest

from supersam.data.sample import MaskRecord, SegmentationSample
from supersam.data.shards import ShardReader

GOLDEN = sorted((Path(__file__).parent / "golden").iterdir())


def sample_of(record):
    masks = [
        MaskRecord(
            **{
                **mask,
                "rle": mask["rle"].encode(),
                "bbox": tuple(mask["bbox"]),
                "point": tuple(mask["point"]),
            },
        )
        for mask in record["masks"]
    ]
    return SegmentationSample(
        **{**record, "image": bytes.fromhex(record["image"]), "masks": tuple(masks)}
    )


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_old_shards_read_as_they_were_written(folder):
    expected = [sample_of(record) for record in json.loads((folder / "expected.json").read_text())]
    reader = ShardReader(folder)
    found = [reader.read(i) for i in range(reader.num_images)]
    assert found == expected
