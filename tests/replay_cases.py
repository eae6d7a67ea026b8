"""Inputs and shells that others reported, replayed: a Markdown table of how each command ended.

usage: python -m tests.replay_cases --cases DIR --out DIR [--only CASE ...]

`DIR/make_data_cases.py` draws the data cases, whose folders are converted; each `DIR/run/CASE/*.sh`
runs in a folder of its own ($R) with a small trained run in $R/base. To judge what the commands
say takes a reader: it is kept as output.txt beside what they wrote. Not a test.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from tests.paths import ROOT

LAYOUTS = (
    ("coco", "annotations/instances_*.json"),
    ("coco", "*/_annotations.coco.json"),
    ("labelmap", "annotations/*/*"),
    ("labelmap", "gtFine/*/*"),
    ("tiff", "training.*"),
    ("sa1b", "*/*.[jJ][sS]*"),
)
"""Sources of `shard`, and what their folders hold; the first that fits."""
PREPARED = {
    "design_nan": "$PY $CASES/ckpt/make.py",
    "predict": "$PY launch/export.py --run $R/base --subnet smallest --onnx --out $R/subnet",
}
"""What cases take for granted besides the trained run."""
Case = tuple[str, Path, Sequence[object], Mapping[str, object]]
"""Name, folder for what is written, command, variables of its environment."""


def main() -> int:
    """Replay the cases. Returns 1 where a command printed a traceback or had to be ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="names of cases; all by default")
    parser.add_argument("--timeout-s", type=float, default=900, help="for each case")
    options = parser.parse_args()
    cases, out, faults = options.cases.resolve(), options.out.resolve(), 0
    print("| case | exit | traceback | last line |\n| --- | --- | --- | --- |")
    for name, folder, words, env in chain(data_cases(cases, out), run_cases(cases, out)):
        if options.only and not {name, name.split("/")[0]} & set(options.only):
            continue
        code, text = replay(words, folder, env, options.timeout_s)
        failed = "Traceback (most recent call last)" in text
        faults += failed or code is None or code < 0
        last = (text.strip().splitlines() or [""])[-1].replace("|", "\\|")
        row = (name, "too long" if code is None else code, "yes" if failed else "", last)
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    return int(faults > 0)


def data_cases(cases: Path, out: Path) -> Iterator[Case]:
    """One conversion for each folder that has the layout of a source."""
    drawn = out / "data"
    replay([sys.executable, cases / "make_data_cases.py", drawn], out / "drawn", {})
    for case in sorted(drawn.iterdir()):
        for root in (case, *sorted(path for path in case.iterdir() if path.is_dir())):
            if (found := layout_of(root)) is not None:
                folder = out / "shards" / root.relative_to(drawn)
                words = [sys.executable, ROOT / "launch/shard.py", "--root", root]
                words += ["--source", found[0], "--split", found[1], "--out", folder / "set"]
                yield str(root.relative_to(drawn)), folder, words, {}


def layout_of(root: Path) -> tuple[str, str] | None:
    """The source whose layout a folder has, and the split in it."""
    for source, pattern in LAYOUTS:
        for path in root.glob(pattern):
            if "instances_" in path.name:
                return source, path.stem.removeprefix("instances_")
            return source, "training" if source == "tiff" else path.parent.name
    return None


def run_cases(cases: Path, out: Path) -> Iterator[Case]:
    """The shells, and what users of segment-anything do with an exported subnet."""
    project, base = out / "project", out / "base"
    train = [sys.executable, ROOT / "launch/train.py", "--config", cases / "run/tiny.yaml"]
    replay([*train, "--run", base], out / "trained", {})
    shutil.copytree(base, project / "runs/demo", dirs_exist_ok=True)
    for path in (*ROOT.iterdir(), Path(sys.prefix)):  # the checkout, with that run as its demo
        link = project / (".venv" if path == Path(sys.prefix) else path.name)
        if not link.exists():
            link.symlink_to(path)
    for script in (*cases.glob("run/*/*.sh"), *cases.glob("run/predict/*.py")):
        name = script.parent.name
        folder = out / "run" / name / script.stem
        shutil.copytree(base, folder / "base", dirs_exist_ok=True)
        run = f"bash {script}" if script.suffix == ".sh" else f"$PY {script} $R/subnet"
        words = ["bash", "-c", f"{PREPARED.get(name, ':')} && {run}"]
        env = {"CASES": cases / "run", "PROJECT": project, "R": folder, "PY": sys.executable}
        yield f"{name}/{script.stem}", folder, words, env


def replay(
    words: Sequence[object], folder: Path, env: Mapping[str, object], timeout_s: float = 600
) -> tuple[int | None, str]:
    """How a command ended, None where it was too long, and all that it printed."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"PYTHONPATH": str(ROOT), **{name: str(value) for name, value in env.items()}}
    with (folder / "output.txt").open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in words],
            **{"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT},
            **{"env": os.environ | variables, "cwd": ROOT, "start_new_session": True},
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    return code, (folder / "output.txt").read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())
