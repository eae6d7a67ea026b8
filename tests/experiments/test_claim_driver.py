"""The claim's driver: its criteria, its choice of subnets, its split, and all stages for real."""

import math

import numpy as np
import pytest
import torch

from experiments.claim import criteria
from experiments.claim.__main__ import main, run_stages
from experiments.claim.criteria import Difference, judge, subnet
from experiments.claim.forms import FORMS, SIZES
from experiments.claim.report import paired
from experiments.claim.score import HiddenImage, Scores, arms
from experiments.claim.split import split_nuclei
from experiments.claim.stages import Plan, whole_params_m
from experiments.claim.subnets import best_within, pruned
from supersam.config import SpaceConfig
from supersam.space import EncoderShape, build_space, subnet_cost
from tests.paths import REAL_DATA, needs_real_data
from tests.search.trials import make_trial

SHAPE = EncoderShape(384, 12, 6, (2, 5, 8, 11), image_size=256, window_size=8)


@pytest.fixture
def space():
    config = SpaceConfig(
        removable=(1, 2, 4, 6, 7, 9),
        mlp_fractions=(0.125, 0.25, 0.5, 1.0),
        head_fractions=(0.5, 0.75, 1.0),
        elastic_heads=True,
    )
    return build_space(config, SHAPE)


def params_m(spec):
    return subnet_cost(spec, SHAPE).params_m


def test_the_smallest_subnet_of_the_full_form_is_70_percent_smaller(space, tmp_path):
    whole = whole_params_m(Plan(tmp_path, tmp_path, FORMS["full"]))
    assert whole == pytest.approx(params_m(space.largest()))
    assert params_m(space.smallest()) <= 0.3 * whole


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", [(), (9, 7, 1, 2)])
def test_a_control_is_as_large_as_its_size_allows(space, size, order):
    most_m = (1 - size) * params_m(space.largest())
    spec = pruned(space, most_m, order)
    assert space.contains(spec)
    assert 0.7 * most_m <= params_m(spec) <= most_m or spec == space.smallest()
    assert set(range(12)) - set(spec.layers) <= set(order) or spec == space.smallest()


def test_the_searchs_choice_is_the_best_one_that_is_small_enough():
    trials = [
        make_trial(index, miou=miou, params_m=size)
        for index, (miou, size) in enumerate([(0.9, 12.0), (0.5, 7.0), (0.6, 8.0), (0.7, 8.1)])
    ]
    assert best_within(trials, 8.0) is trials[2].spec
    with pytest.raises(SystemExit, match="no subnet of 6.0 M"):
        best_within(trials, 6.0)


def difference(mean, half=0.01):
    return Difference(mean, mean - half, mean + half, seeds=2)


def test_a_criterion_holds_only_where_its_whole_interval_does():
    pairs = {(subnet(size), "pretrained"): difference(0.1) for size in SIZES}
    assert judge(pairs, {})[1].holds is True
    pairs[subnet(0.7), "pretrained"] = difference(0.055)  # lower bound +0.045
    assert judge(pairs, {})[1].holds is False


def test_a_pretrained_model_that_only_reads_the_prompt_does_not_pass_the_gate():
    assert judge({}, {}, difference(0.02))[0].holds is True
    assert judge({}, {}, difference(0.005))[0].holds is False  # lower bound -0.005
    assert judge({}, {})[0].holds is None


def test_what_was_not_run_is_not_judged():
    verdicts = judge({(subnet(0.3), "pretrained"): difference(0.1)}, {})
    assert [verdict.holds for verdict in verdicts] == [None] * 5
    assert "not run" in verdicts[1].words


def test_equal_models_that_cost_more_do_not_meet_s3():
    pairs = {
        (subnet(size), f"{kind} {subnet(size).removeprefix('subnet ')}"): difference(0.0)
        for size in SIZES
        for kind in ("prune and tune", "uniform")
    }
    cheap = {"one supernet": 1.0, "separate trainings": 2.0}
    assert judge(pairs, cheap)[3].holds is True
    assert judge(pairs, {"one supernet": 2.0, "separate trainings": 1.0})[3].holds is False
    assert judge(pairs, {})[3].holds is None


def test_the_margins_are_those_that_were_written_before_the_first_run():
    assert (criteria.S1_MARGIN, criteria.S2_MARGIN) == (0.05, -0.02)


def test_differences_are_paired_by_object_and_resampled_by_image():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 5)
    hard = rng.uniform(0, 1, 200)  # what both models find hard
    prior = {"prior_point": hard, "prior_box": hard}
    second = {0: Scores(group, point=hard, box=hard, **prior)}
    first = {0: Scores(group, point=hard + 0.02, box=hard - 0.02, **prior)}
    found = paired(first, second, "point")
    assert found.low == pytest.approx(0.02)
    assert found.high == pytest.approx(0.02)
    assert paired(first, second, "box").mean == pytest.approx(-0.02)


def test_no_image_is_in_two_parts(tmp_path):
    source = tmp_path / "source"
    for part, count in (("train", 9), ("val", 4)):
        (source / part).mkdir(parents=True)
        for number in range(count):
            for suffix in (".jpg", ".json"):
                (source / part / f"sa_{number}{suffix}").write_text(f"{part} {number}")
    for _ in range(2):  # a second start finds its own links
        split_nuclei(source, tmp_path / "out", select=3)
    parts = {
        part: {file.resolve() for file in (tmp_path / "out" / part).glob("*.jpg")}
        for part in ("train", "select", "test")
    }
    assert [len(parts[part]) for part in ("train", "select", "test")] == [6, 3, 4]
    assert len(set.union(*parts.values())) == 13


def test_data_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(SystemExit, match="has no folder train"):
        split_nuclei(tmp_path / "absent", tmp_path / "out")


@needs_real_data
def test_every_real_image_is_in_one_part(tmp_path):
    split_nuclei(REAL_DATA / "nuclei_sa1b", tmp_path)
    count = {
        part: len(list((tmp_path / part).glob("*.jpg"))) for part in ("train", "select", "test")
    }
    assert count == {"train": 280, "select": 40, "test": 60}


def test_a_hidden_image_leaves_the_prompt_alone():
    class Echo:
        def predict(self, images, sizes, points, labels):
            return images.float().mean(), points

    images = torch.randint(0, 255, (1, 3, 8, 8), dtype=torch.uint8)
    points = torch.rand(1, 1, 1, 2)
    seen, kept = HiddenImage(Echo()).predict(images, torch.tensor([[8, 8]]), points, points)
    assert seen == 128
    assert kept is points


def test_stages_of_an_earlier_start_count_whatever_only_names(tmp_path):
    plan = Plan(tmp_path / "data", tmp_path / "out", FORMS["small"])
    stages = {stage.name: stage for stage in plan.stages()}
    for name in stages["pretrain"].after:
        record = plan.out / "stages" / f"{name.replace(' ', '-')}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
    assert not run_stages(plan, math.inf, only="pretrain", at_once=1)
    log = (plan.out / "logs" / "pretrain.log").read_text()  # it ran, and there was nothing to read
    assert "error: " in log
    assert sorted(file.name for file in (plan.out / "logs").iterdir()) == ["pretrain.log"]


def test_only_models_that_were_trained_to_the_end_are_scored(tmp_path):
    plan = Plan(tmp_path / "data", tmp_path / "out", FORMS["small"])
    for run in ("pretrained", "whole-0", "uniform-50-0"):
        plan.run(run).mkdir(parents=True)
        (plan.run(run) / "subnet.json").write_text("{}")
    (plan.out / "stages").mkdir()
    for stage in ("pretrain", "uniform-50-0"):
        (plan.out / "stages" / f"{stage}.json").write_text("{}")
    assert [arm.name for arm in arms(plan)] == ["pretrained", "uniform -50 %"]


def test_a_report_without_models_or_without_shards_is_one_line(tmp_path, capsys, monkeypatch):
    for part in ("train", "val"):
        source = tmp_path / "data" / "nuclei_sa1b" / part
        source.mkdir(parents=True)
        for number in range(60):
            for suffix in (".jpg", ".json"):
                (source / f"sa_{number}{suffix}").write_text("")
    words = ["claim", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*words, "--form", "small", "--only", "no such stage"])
    assert main() == 2
    assert capsys.readouterr().err == (
        f"error: no model is trained yet; see {tmp_path / 'out' / 'logs'}\n"
    )
    (tmp_path / "out" / "runs" / "pretrained").mkdir(parents=True)
    assert main() == 2  # its training has not ended
    assert "no model is trained yet" in capsys.readouterr().err
    (tmp_path / "out" / "stages").mkdir()
    (tmp_path / "out" / "stages" / "pretrain.json").write_text("{}")
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "nuclei-t" in said
    assert said.count("\n") == 1
