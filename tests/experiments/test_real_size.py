"""docs/real_size.md: every command is read as the command line reads it, and trained dry."""

import re
import shlex
from pathlib import Path

import pytest

from supersam.config import SourceConfig, SyntheticConfig, parse_cli
from supersam.config.commands import COMMANDS
from supersam.data.convert import convert
from tests.commands import launch
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "real_size.md").read_text(encoding="utf-8")
LINES = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_page_is_read_without_a_fault(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    python, script, *flags = shlex.split(line)
    assert python == "python"
    assert (ROOT / script).is_file()
    command = COMMANDS[Path(script).stem]
    parse_cli(command.run_type, flags)


def test_the_page_goes_from_images_to_an_export():
    scripts = [Path(shlex.split(line)[1]).stem for line in LINES]
    assert scripts == ["shard", "shard", "shard", "train", "search", "export"]


@pytest.mark.slow
def test_the_training_of_the_page_is_described_with_its_script_and_its_memory(tmp_path):
    source = SourceConfig(kind="synthetic", synthetic=SyntheticConfig(images=2, size_px=64))
    for split in ("train", "val"):
        convert(source, tmp_path / "data" / "coco" / split)
    (line,) = [line for line in LINES if "launch/train.py" in line]
    words = [*shlex.split(line)[1:]]
    place = words.index("--model.checkpoint")
    del words[place : place + 2]  # the official weights are not here
    words += ["--model.depth", "2", "--model.global-layers", "1"]  # quicker to predict
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    done = launch("train", *words[1:], cwd=tmp_path)
    assert "#SBATCH --nodes=8" in done.stdout, done.stderr
    assert "#SBATCH --gpus-per-node=8" in done.stdout
    assert "GiB" in done.stdout
    assert "Traceback" not in done.stderr
