"""The table of an evaluation, and what is said in words below it."""

from dataclasses import replace

import torch

from supersam.evaluation import evaluate
from supersam.evaluation.result import EvalResult
from supersam.evaluation.table import format_table, remarks
from supersam.runtime.bootstrap import Difference
from tests.evaluation.scenes import Replay, eval_image, smooth_logits


def result_of(seed: int) -> EvalResult:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    logits = {key: smooth_logits(4, cells=16, generator=generator) for key in range(12)}
    images = [
        eval_image(smooth_logits(4, cells=64, generator=generator)[:, 0] > 0, side=64,
                   size=(64, 64), sample_id=key)
        for key in logits
    ]  # fmt: skip
    return evaluate(Replay(logits), images)


def test_the_headline_comes_first_and_nothing_is_wider_than_100_columns():
    point, box = result_of(0), result_of(1)
    wide = replace(box, num_objects=10**9, num_images=10**8, miou_interval=(0.1, 0.9))
    difference = Difference(-0.12345, (-0.23456, -0.01234), 12)
    text = format_table(
        {"point": point, "box": wide},
        {"point": difference, "box": difference},
        reference="runs/a_run_of_a_long_name/results/search#knee",
    )
    lines = text.splitlines()
    assert lines[0].split() == ["point", "box"]
    assert lines[1].split()[1:3] == [f"{point.miou:.4f}", f"{wide.miou:.4f}"]
    assert lines[3].split()[:2] == ["less", ".../search#knee"]
    assert "-0.1235" in lines[3] or "-0.1234" in lines[3]
    assert max(map(len, lines)) <= 100


def test_every_row_but_the_counts_says_what_it_means():
    lines = format_table({"point": result_of(0)}).splitlines()[1:]
    assert all(len(line.split("  ")) > 2 for line in lines if not line.startswith("objects"))
    assert not any("without the image" in line for line in lines)  # no prior was given


def test_a_model_below_its_prior_is_told_so_in_words():
    result = replace(result_of(0), prior_miou=0.99, num_groups=30)
    (line,) = remarks({"box": result})
    assert "less than the mean training mask in the box (0.9900)" in line
    assert remarks({"box": replace(result, prior_miou=0.0)}) == []


def test_few_groups_and_cut_objects_are_said():
    result = replace(result_of(0), num_groups=4, num_cut_objects=7)
    cut, few = remarks({"point": result})
    assert "7 objects" in cut
    assert "--cut-objects" in cut
    assert "only 4 clips, stacks or images" in few
    (one,) = remarks({"point": replace(result, num_groups=1, num_cut_objects=0)})
    assert "there is no interval" in one
