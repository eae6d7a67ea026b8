"""What TensorBoard shows of a search while it goes on."""

from __future__ import annotations

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from supersam.runtime.metrics import MetricWriter
from supersam.search.pareto import pareto_front
from supersam.search.tensorboard import front_volume
from tests.search.tiny_search import search
from tests.search.trials import make_trial

TICKED = 5  # columns that TensorBoard shows before anybody chooses
OBJECTIVES = ("miou", "params_m")
CORNERS = [make_trial(0, miou=0.6, params_m=10.0), make_trial(1, miou=0.3, params_m=5.0)]


def test_the_volume_of_a_front_is_the_best_miou_on_average_over_the_budgets():
    assert front_volume(CORNERS, CORNERS, OBJECTIVES) == pytest.approx(0.3)
    better = [make_trial(1, miou=0.3, params_m=5.0), make_trial(2, miou=0.5, params_m=7.0)]
    assert front_volume(better, CORNERS, OBJECTIVES) == pytest.approx(0.4 * 0.3 + 0.6 * 0.5)


def test_the_volume_never_falls_while_trials_come():
    trials = [make_trial(i, miou=0.3 + 0.01 * (i * 7 % 20), params_m=5 + i) for i in range(5)]
    trials.append(make_trial(9, miou=0.05, params_m=30.0))  # a larger box of all trials
    volumes = [
        front_volume(pareto_front(trials[:count], OBJECTIVES), CORNERS, OBJECTIVES)
        for count in range(1, len(trials) + 1)
    ]
    assert volumes == sorted(volumes)
    assert 0 < volumes[0] <= volumes[-1] <= 1


def test_columns_are_those_of_trainings_and_searches_whichever_is_read_first(tmp_path):
    described = []
    for name, settings, results in (
        ("training", {"model": "vit_t", "lr": 1e-3, "distill": False}, {"val/miou/medium": 0.5}),
        ("search", {"searcher": "nsga2", "seed": 3}, {"search/best_miou": 0.5}),
    ):
        writer = MetricWriter(tmp_path / name)
        writer.hparams(settings, results)
        writer.close()
        board = EventAccumulator(str(tmp_path / name / "tensorboard")).Reload()
        content = board.SummaryMetadata("_hparams_/experiment").plugin_data.content
        experiment = HParamsPluginData.FromString(content).experiment
        described.append(
            (
                {info.name: info.type for info in experiment.hparam_infos},
                {info.name for info in experiment.hparam_infos if info.differs},
                [info.name.tag for info in experiment.metric_infos][:TICKED],
            )
        )
    assert described[0] == described[1]
    settings, first, results = described[0]
    assert {"model", "searcher", "constraint"} <= settings.keys()
    assert len(first) == TICKED
    assert {"lr", "searcher"} <= first
    assert {"val/miou/largest", "search/hypervolume"} <= set(results)


def test_a_search_leaves_its_front_and_a_line_of_settings(run, tmp_path):
    result = search(run, tmp_path / "search")
    board = EventAccumulator(str(result.folder / "tensorboard")).Reload()
    assert board.Tags()["images"] == ["search/front_selected_on"]
    volumes = [event.value for event in board.Scalars("search/hypervolume")]
    assert volumes == sorted(volumes)
    best = max(trial.metrics["miou"] for trial in result.front)
    assert board.Scalars("search/best_miou")[-1].value == pytest.approx(best)
    (one_run,) = (result.folder / "tensorboard").iterdir()
    settings = board.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert settings.plugin_name == "hparams"
    assert b"searcher" in settings.content
    last = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == result.num_trials
