from __future__ import annotations

from pathlib import Path

import pytest

from supersam.config import Constraint, DesignRun, SearchRun, TrainRun, parse_cli
from tests.paths import ROOT

CONFIGS = sorted((ROOT / "configs" / "search").glob("*.yaml"))


def parse(*words: object) -> SearchRun:
    return parse_cli(SearchRun, [str(word) for word in words])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_searches_have_no_faults(path):
    parse("--config", path, "--run", "somewhere")


def test_the_contract_of_the_command_line():
    asked = parse(
        *("--run", "runs/a", "--nodes", 4, "--trials", 500, "--searcher", "optuna"),
        *("--objectives", "miou", "latency_ms", "--constraint", "params_m<=45", "flops_g>=1e2"),
        *("--node-constraint", "h100"),
    )
    assert asked.folder == Path("runs/a/results/search")
    assert asked.constraints == (
        Constraint("params_m", True, 45.0),
        Constraint("flops_g", False, 100.0),
    )
    assert asked.cluster.constraint == "h100"
    assert asked.measured == ("latency_ms",)


@pytest.mark.parametrize(
    ("run_type", "words"),
    [
        (TrainRun, ("--data.source", "synthetic")),
        (DesignRun, ("--data", "shards", "--checkpoint", "weights.pth")),
        (SearchRun, ("--run", "runs/a")),
    ],
)
def test_features_of_nodes_have_one_name_with_every_command(run_type, words):
    asked = parse_cli(run_type, [*words, "--node-constraint", "a100&nvlink"])
    assert asked.cluster.constraint == "a100&nvlink"


def test_sbatchs_own_word_for_features_of_nodes_is_taken_where_there_are_no_subnets():
    asked = parse_cli(TrainRun, ["--data.source", "synthetic", "--constraint", "a100"])
    assert asked.cluster.constraint == "a100"


def test_a_sites_profile_may_hold_what_is_for_trainings(tmp_path, capsys):
    profile = tmp_path / "site.yaml"
    profile.write_text("cluster: {partition: gpu, spare_nodes: 2, gpu_memory_gib: 80}\n")
    asked = parse("--run", "a", "--config", profile)
    assert asked.cluster.partition == "gpu"
    assert "spare_nodes" not in asked.cluster.model_dump()
    profile.write_text("cluster: {then: evaluate}\n")
    with pytest.raises(SystemExit):
        parse("--run", "a", "--config", profile)
    assert "then follows a training alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--constraint", "param_m<=45"], "did you mean params_m?"),
        (["--constraint", "accuracy>=0.7"], "unknown metric"),
        (["--constraint", "miou>=0.7"], "only evaluation tells; limits are on params_m"),
        (["--constraint", "params_m"], "METRIC<=NUMBER"),
        (["--constraint", ""], "METRIC<=NUMBER"),
        (["--constraint", "params_m=45"], "write params_m<=45 or params_m>=45"),
        (["--constraint", "params_m<60"], "write params_m<=60"),
        (["--constraint", "params_m<=."], "'.' is not a number above 0; params_m counts millions"),
        (["--constraint", "params_m<=60M"], "'60M' is not a number above 0"),
        (["--constraint", "params_m<=nan"], "'nan' is not a number above 0"),
        (["--constraint", "latency_ms<=-5"], "counts milliseconds, such as latency_ms<=45"),
        (["--sweep.constraints", "flops_g<=1e"], "'1e' is not a number above 0"),
        (["--constraint", "params_m<=8", "params_m>=9"], "leave nothing between them"),
        (["--constraint", "params_m<=8", "--sweep.constraints", "params_m>=9"], "drop one of them"),
        (["--objectives", "miou", "miou"], "different metrics"),
        (["--searcher", "annealing"], "nsga2"),
        (["--protocol.rungs", "0.5", "0.2"], "must ascend"),
        (["--checkpoint", "last", "--trials", "0"], "greater than"),
        (["--then", "evaluate"], "--then"),
        (["--spare-nodes", "1"], "--spare-nodes"),
    ],
)
def test_a_wrong_search_is_one_message(capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        parse("--run", "runs/a", *words)
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_limit_includes_its_number():
    assert Constraint.parse("params_m <= 45").allows(45.0)
    assert not Constraint.parse("params_m<=45").allows(45.1)
    assert Constraint.parse("flops_g>=1").allows(1.0)


@pytest.mark.parametrize(
    ("words", "size"),
    [((), 8), (("--population", 6), 6), (("--nodes", 2, "--population", 6), 3),
     (("--nodes", 4, "--evaluators-per-node", 4), 2), (("--nodes", 64), 1)],
)  # fmt: skip
def test_a_population_goes_round_all_evaluators(words, size):
    assert parse("--run", "runs/a", *words).chunk_size == size
