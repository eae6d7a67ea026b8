"""Files and flags to a run and back; what is wrong is said at once, by name, without torch."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
import yaml

from supersam.cli import run_command
from supersam.config import (
    EvaluateRun,
    ShardRun,
    TrainRun,
    UserError,
    dump_run,
    load_run,
    merge,
    parse_cli,
    read_yaml,
)
from supersam.config.choices import known_flags
from supersam.config.commands import COMMANDS
from supersam.config.errors import describe_missing, describe_os_error, exit_code
from supersam.config.shipped import find_config, shipped_configs
from tests.paths import ROOT

SYNTHETIC = {"data": {"source": "synthetic"}}
LAUNCH = sorted((ROOT / "launch").glob("*.py"))
CONFIGS = sorted((ROOT / "configs" / "train").glob("*.yaml"))


def write(path: Path, values: object) -> Path:
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def parse(*words: object) -> TrainRun:
    return parse_cli(TrainRun, [str(word) for word in words])


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What is printed on stderr when the command line is refused, with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_a_dumped_run_loads_back_equal(tmp_path):
    run = TrainRun.model_validate(
        SYNTHETIC
        | {
            "name": "x",
            "run": "runs/y",
            "cluster": {"tasks_per_node": 2},
            "optim": {"lr": 1e-7, "steps": 3},
            "space": {"removable": [0]},
            "checkpoint": {"pin": [5, 6]},
        }
    )
    path = write(tmp_path / "run.yaml", dump_run(run))
    assert load_run(TrainRun, path) == run
    assert parse("--config", path) == run


@pytest.mark.parametrize(
    "run",
    [
        EvaluateRun(run=Path("runs/x"), json=True),
        ShardRun(out=Path("out"), source={"root": "in", "kind": "coco"}),
    ],
)
def test_other_runs_load_back_equal(tmp_path, run):
    assert load_run(type(run), write(tmp_path / "run.yaml", dump_run(run))) == run


def test_merging_is_deep_and_later_trees_win():
    first = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    second = {"a": {"c": [3]}, "d": {"e": 2}}
    assert merge(first, second) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert merge(first) == first
    assert merge() == {}


def test_later_files_win_and_flags_win_over_files(tmp_path):
    first = write(tmp_path / "a.yaml", SYNTHETIC | {"optim": {"lr": 0.1, "steps": 7}})
    second = write(tmp_path / "b.yaml", {"optim": {"lr": 0.2, "warmup_steps": 3}})
    run = parse("--config", first, f"--config={second}")
    assert (run.optim.lr, run.optim.steps, run.optim.warmup_steps) == (0.2, 7, 3)
    run = parse("--optim.lr", "0.3", "--config", first, "--config", second)
    assert (run.optim.lr, run.optim.steps, run.optim.warmup_steps) == (0.3, 7, 3)


def test_flags_reach_what_the_user_types_on_a_cluster(tmp_path):
    run = parse("--data.source", "synthetic", "--tasks-per-node", "2", "--run", tmp_path)
    assert run.cluster.tasks_per_node == 2
    assert run.folder == tmp_path


@pytest.mark.parametrize("words", [["--background-id", "null"], ["--background-id=null"]])
def test_null_on_a_command_line_is_yaml_s(words):
    run = parse_cli(ShardRun, ["--out", "shards", "--root", "null-root", *words])
    assert (run.source.background_id, run.source.root) == (None, Path("null-root"))


def test_a_flag_may_mend_what_only_the_whole_run_can_violate(tmp_path):
    path = write(tmp_path / "a.yaml", {"optim": {"steps": 7}})  # names no data
    assert parse("--config", path, "--data.source", "synthetic").optim.steps == 7


def test_an_existing_run_is_recalled_by_its_folder(tmp_path):
    run = TrainRun.model_validate(SYNTHETIC | {"optim": {"steps": 7}})
    write(tmp_path / "run.yaml", dump_run(run))
    recalled = parse_cli(TrainRun, ["--run", str(tmp_path), "--optim.lr", "0.5"], recall=True)
    assert (recalled.optim.steps, recalled.optim.lr, recalled.run) == (7, 0.5, tmp_path)


@pytest.mark.parametrize("joined", [True, False])
def test_a_run_that_is_not_there_is_not_begun_by_its_folder_alone(tmp_path, capsys, joined):
    folder = str(tmp_path / "nothere")
    words = [f"--run={folder}"] if joined else ["--run", folder]
    with pytest.raises(SystemExit) as ended:
        parse_cli(TrainRun, words, recall=True)
    assert ended.value.code == 2
    assert f"no run {folder} to go on with" in capsys.readouterr().err


def test_all_faults_of_a_file_are_listed_at_once(tmp_path, capsys):
    faulty = {"optim": {"lr": -1, "steps": 0}, "engine": {"precision": "fp8"}}
    message = complaint(capsys, "--config", write(tmp_path / "a.yaml", SYNTHETIC | faulty))
    for fault in ("3 faults", "optim.lr", "got -1", "optim.steps", "engine.precision", "bf16"):
        assert fault in message


def test_a_number_that_is_not_finite_is_refused(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("optim: {lr: .inf, weight_decay: .nan}\n")
    message = complaint(capsys, "--config", path)
    assert "2 faults" in message
    assert "optim.lr: must be a finite number (got inf)" in message


def test_off_is_a_word_and_a_switch_is_still_turned_by_it(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("prioritize: {when: off}\nloss: {distill: on}\nengine: {compile: no}\n")
    run = load_run(TrainRun, write(tmp_path / "b.yaml", merge(SYNTHETIC, read_yaml(path))))
    assert (run.prioritize.when, run.loss.distill, run.engine.compile) == ("off", True, False)
    assert read_yaml(path)["engine"] == {"compile": "no"}


def test_unknown_keys_name_the_nearest(tmp_path, capsys):
    faulty = {"optim": {"warmup_step": 3}, "modle": {}}
    message = complaint(capsys, "--config", write(tmp_path / "a.yaml", SYNTHETIC | faulty))
    assert "optim.warmup_step: unknown name; did you mean warmup_steps?" in message
    assert "modle: unknown name; did you mean model?" in message


def test_unknown_flags_name_the_nearest(capsys):
    message = complaint(capsys, "--data.source", "synthetic", "--optim.warmup-step", "3")
    assert "--optim.warmup-step is not a flag of this command" in message
    assert "did you mean --optim.warmup-steps?" in message


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.filterwarnings("ignore:get_parser:DeprecationWarning")
def test_the_flags_that_are_known_are_those_of_the_command(name):
    run_type = COMMANDS[name].run_type
    known = {word for flag in known_flags(run_type) for word in flag.names}
    parser = tyro.extras.get_parser(run_type)
    options = {word for action in parser._actions for word in action.option_strings}
    assert known | {"-h", "--help"} == options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--optim.lr", "-1"], "--optim.lr: must be greater than 0 (got -1.0)"),
        (["--optim.lr", "fast"], "--optim.lr fast is not a number"),
        (["--optim.steps=1.5"], "--optim.steps 1.5 is not a whole number"),
        (["--model.depth", "few"], "--model.depth few is not a whole number"),
        (["--data.synthetic-val.size-px", "3"], "--data.synthetic-val.size-px: must be greater"),
        (["--loss.mask", "mine:"], "module:object of your own"),
        (["--engine.precision", "fp23"], "fp23 is not known; did you mean fp32? known are auto"),
        (["--engine.precision=fp23"], "did you mean fp32?"),
        (["--cluster", "slrum"], "--cluster slrum is not known; did you mean slurm?"),
        (
            ["--optim.trainable", "encoder", "decoder"],
            "decoder is not known; did you mean encoder?",
        ),
        (["--confg", "vit_b"], "--confg is not a flag of this command; did you mean --config?"),
        (["--optim.stpes=3"], "--optim.stpes is not a flag of this command; did you mean --opti"),
        (["--optim.global-batch", "5", "--optim.accumulate", "2"], "--optim.global-batch 5 is not"),
        (["--engine.zero-stage", "3"], "stage 3 gathers whole parameters"),
        (["--name", "../up"], "--name: must be letters, digits"),
    ],
)
def test_faulty_flags_end_in_one_message(capsys, words, expected):
    message = complaint(capsys, "--data.source", "synthetic", *words)
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("[1]", "is a list"),
        ("a: [1", "cannot read"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' stands twice"),
        ("a: !!python/object/apply:os.getcwd []", "cannot read"),
        ("a:\n\tb: 1", "line 2, column 1: .*; indent with spaces"),
        ("a: 1\n---\na: 2", "line 2, column 1: a second document begins"),
        ("? [1]\n: 2", "line 1, column 3"),
        ("a: !!int b", "cannot read"),
        ("[" * 3000, "nested too deep"),
        ("a: 1" + "0" * 5000, "cannot read"),
        (b"name: l\xe4ufe", "not text in UTF-8"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, capsys, text, expected):
    path = tmp_path / "odd.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=expected):
        read_yaml(path)
    told = complaint(capsys, "--config", path)
    assert "odd.yaml" in told
    assert told.count("\n") == 1


def test_words_and_digits_of_a_file_mean_what_they_look_like(tmp_path):
    text = "{a: off, b: 010, c: 1:30:00, d: 2026-12-01, e: 007, f: 1_000, g: 0x10, h: -3, i: 2.5}"
    assert read_yaml(write(tmp_path / "a.yaml", text)) == {
        **{"a": "off", "b": "010", "c": "1:30:00", "d": "2026-12-01", "e": "007"},
        **{"f": 1000, "g": 16, "h": -3, "i": 2.5},
    }
    text = (
        "optim: {seed: 010}\nname: 2026-12-01\ncluster: {time: 1:30:00}\ndata: {source: synthetic}"
    )
    run = parse("--config", write(tmp_path / "b.yaml", text))
    assert (run.optim.seed, run.name, run.cluster.time) == (10, "2026-12-01", "1:30:00")
    assert load_run(TrainRun, write(tmp_path / "run.yaml", dump_run(run))) == run


def test_a_file_may_share_values_by_anchors_and_merge_keys(tmp_path):
    text = "a: {b: &b {x: 1, y: 2}}\nc: {<<: *b, y: 4}\nd: *b"
    values = read_yaml(write(tmp_path / "a.yaml", text))
    assert (values["c"], values["d"]) == ({"x": 1, "y": 4}, {"x": 1, "y": 2})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim:", "optim: is a section; write names and values under it, or leave it out"),
        ("optim: {1: 2}", "optim.1: unknown name; known are steps, lr"),
        ("name: 7", "name: must be text; put it in quotes (got 7)"),
        ("run: 5", "run: must be a path; put it in quotes (got 5)"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_plain_words(tmp_path, capsys, text, expected):
    assert expected in complaint(capsys, "--config", write(tmp_path / "a.yaml", text))


def test_a_missing_file_is_refused_by_name(tmp_path, capsys):
    assert "absent.yaml is not a file" in complaint(capsys, "--config", tmp_path / "absent.yaml")
    assert "--config needs a FILE" in complaint(capsys, "--config")


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_configuration_is_found_by_its_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_yaml(find_config(name)) == read_yaml(shipped_configs()[name])


def test_names_of_shipped_configurations_are_unique():
    assert len(shipped_configs()) == len(list((ROOT / "configs").glob("*/*.yaml")))


def test_a_file_wins_over_a_shipped_configuration_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vit_b").write_text("name: mine")
    assert find_config("vit_b") == Path("vit_b")


def test_an_unknown_configuration_names_the_nearest(capsys):
    assert "--config vitb is not a shipped configuration; did you mean --config vit_b?" in (
        complaint(capsys, "--config", "vitb")
    )
    assert "did you mean --config vit_b?" in complaint(capsys, "--config", "conf/vit_b.yaml")


def test_a_run_is_frozen_and_its_folder_follows_its_name():
    run = TrainRun.model_validate(SYNTHETIC | {"name": "mine"})
    assert run.folder == Path("runs/mine")
    with pytest.raises(ValueError, match="frozen"):
        run.optim.lr = 1.0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_have_no_faults(path):
    parse("--config", path, *([] if "demo" in path.stem else ["--data.train", "somewhere"]))


def test_parsing_and_help_import_no_torch():
    """On a login node `--help` is instant: every launch script in one fresh interpreter."""
    script = f"""
import runpy, sys
for path in {[str(path) for path in LAUNCH]!r}:
    sys.argv = [path, "--help"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0, path
heavy = {{"torch", "deepspeed", "ray", "h5py", "submitit"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--config") >= len(LAUNCH)


def test_home_is_what_a_shell_makes_of_it_in_files_and_behind_a_flags_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {**SYNTHETIC, "model": {"checkpoint": "~/sam.pth"}}
    run = parse("--config", write(tmp_path / "run.yaml", values), "--loss.teacher=~/teacher.pth")
    assert run.model.checkpoint == tmp_path / "sam.pth"
    assert run.loss.teacher == tmp_path / "teacher.pth"


@pytest.mark.parametrize(
    "fault",
    [
        OSError(28, "No space left on device", "out/journal.jsonl"),
        OSError(122, "Disk quota exceeded", "out/journal.jsonl"),
        OSError(30, "Read-only file system", "out/journal.jsonl"),
        OSError("checkpoint out/journal.jsonl could not be written: No space left on device"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_message(fault, capsys):
    def fail(_: object) -> int:
        raise fault

    assert exit_code(fail, None) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "out/journal.jsonl" in said
    assert "Errno" not in said
    assert "make room" in said


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR])
def test_a_path_that_cannot_be_one_is_one_message(code, capsys):
    def fail(_: object) -> int:
        raise OSError(code, os.strerror(code), "a/b")

    assert exit_code(fail, None) == 2
    assert capsys.readouterr().err.startswith(f"error: a/b: {os.strerror(code)}; name another path")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_that_fails_is_one_message(code):
    told = describe_os_error(OSError(code, os.strerror(code), "a/b"))
    assert told is not None
    assert told.startswith(f"a/b: {os.strerror(code)}; mend the disk")


@pytest.mark.parametrize("name", [str, os.fsencode])
def test_what_was_deleted_during_the_work_is_named_by_its_highest_folder(tmp_path, name):
    path = tmp_path / "run" / "logs" / "metrics.jsonl"
    with pytest.raises(FileNotFoundError) as raised:
        open(name(path), "a").close()
    told = describe_os_error(raised.value)
    assert told is not None
    assert told.startswith(f"{tmp_path / 'run'} does not exist, or was deleted or moved")


def test_a_fault_is_told_of_the_path_that_caused_it(tmp_path):
    outer = OSError("step 3 could not be written")
    with pytest.raises(OSError, match="No such file") as raised:
        (tmp_path / "run" / "step-3").mkdir()
    outer.__cause__ = raised.value
    told = describe_os_error(outer)
    assert told is not None
    assert told.startswith(f"{tmp_path / 'run'} does not exist")


def test_a_program_that_is_absent_is_another_fault():
    assert describe_os_error(FileNotFoundError(errno.ENOENT, "No such file", "sbatch")) is None


@pytest.mark.parametrize("words", [["--config", "x" * 300], ["--run", "x" * 5000]])
def test_a_name_that_is_too_long_is_refused_before_anything_is_read(words, capsys):
    assert run_command("train", words, prog="train") == 2
    assert "File name too long" in capsys.readouterr().err


def test_an_address_in_place_of_a_file_is_told_from_a_missing_file():
    assert describe_missing(Path("https://x.org/sam.pth")).startswith("is an address; download it")
    assert describe_missing(Path("a:b/sam.pth")) == "does not exist"


def test_another_fault_of_the_system_is_not_the_users():
    def fail(_: object) -> int:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        exit_code(fail, None)
