"""Whether training saw the evaluation images: by content, or unknown where nothing is at hand."""

from supersam.config import SourceConfig, TrainRun
from supersam.data.convert import convert
from supersam.runs.seen_data import seen_in_training
from supersam.runs.weights import WeightSource
from tests.data.folders import make_sa1b


def test_tiles_of_training_images_are_seen_and_other_images_of_their_names_are_not(tmp_path):
    for name, split, tile_px in (("a", "train", None), ("a", "train", 32), ("b", "train", None)):
        root = make_sa1b(tmp_path / name, 2 if name == "a" else 1)
        if name == "b":  # another photograph under the name of the first
            photo = root / split / "sa_0000.jpg"
            photo.write_bytes(
                (tmp_path / "a" / split / "sa_0001.jpg").read_bytes()[:-2] + b"\xff\xd9x"
            )
        source = SourceConfig(kind="sa1b", root=root, tile_px=tile_px, min_area_px=1)
        convert(source, tmp_path / f"{name}-{tile_px}")
    run = TrainRun(run=tmp_path / "run", data={"train": [tmp_path / "a-None"]})
    tiles = seen_in_training(run, WeightSource(step=0), (tmp_path / "a-32",))
    assert tiles.seen is True
    assert "compared by content" in tiles.detail
    assert seen_in_training(run, WeightSource(step=0), (tmp_path / "b-None",)).seen is False


def test_without_the_training_set_it_is_unknown(tmp_path):
    source = SourceConfig(kind="sa1b", root=make_sa1b(tmp_path / "a", 1))
    convert(source, tmp_path / "val")
    run = TrainRun(run=tmp_path / "run", data={"train": [tmp_path / "gone"]})
    seen = seen_in_training(run, WeightSource(step=0), (tmp_path / "val",))
    assert seen.seen is None
    assert "gone is not here" in seen.detail
