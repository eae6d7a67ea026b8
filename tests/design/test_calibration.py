"""Samples of a calibration set are spread over all sets, however many images these hold."""

from types import SimpleNamespace

from supersam.design import calibration


class Counted:
    """A data set that notes what is asked for, of sets that no list of images could hold."""

    def __init__(self, *num_images: int) -> None:
        self.readers = [SimpleNamespace(num_images=count) for count in num_images]

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[int, int, int]:
        return key


def test_a_calibration_set_is_spread_over_sets_of_any_size(monkeypatch):
    monkeypatch.setattr(calibration, "collate", list)
    drawn = calibration.draw_batches(Counted(3 * 10**12, 0, 10**12), images=8, batch=3)
    half = 5 * 10**11
    places = [(0, k * half, 0) for k in range(6)] + [(2, 0, 0), (2, half, 0)]
    assert drawn == [places[:3], places[3:6], places[6:]]


def test_all_images_are_taken_where_there_are_fewer_than_wanted(monkeypatch):
    monkeypatch.setattr(calibration, "collate", list)
    (drawn,) = calibration.draw_batches(Counted(0, 2, 1), images=8, batch=8)
    assert drawn == [(1, 0, 0), (1, 1, 0), (2, 0, 0)]
