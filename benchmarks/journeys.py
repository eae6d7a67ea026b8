"""Files that a reader walks from a command to a training step, or to a line of a search's journal.

python -m benchmarks.journeys train [--nodes 8] [--tree DIR] [--gate]
python -m benchmarks.journeys search --run DIR [--nodes 4] [--tree DIR] [--gate]

Runs the command on Slurm (a real one, as SLURM_CONF says, or slurm/devcluster), each of its
processes under sys.setprofile. On the path are the functions that are on the stack when a process
submits or starts the next one, and when the goal is reached: `train_step`, or a trial's evaluation
and its line of the journal. A climb is a call there from a lower floor to a higher one; the floors
are those of pyproject.toml. Beside the path are files whose functions the path calls before that,
climbs among them.
--nodes 0 stays in this process. --tree walks another checkout of this project, --goal FILE:FUNCTION
names its goals where they are called otherwise. Prints the path and, last, one line of JSON; with
--gate, more files than the aim exit with 1.
"""

import argparse
import atexit
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOALS = {
    "train": ["training/trainer.py:train_step"],
    "search": ["search/evaluator.py:evaluate", "search/journal.py:append"],
}
OWN = r"^launch/|supersam|submitit|default_worker"
"""In a word of each command line whose process may run this project's code."""
MOST_FILES = {"train": 22, "search": 18}
TINY = {
    "model": {"name": "tiny", "embed_dim": 32, "depth": 2, "num_heads": 2, "global_layers": [1],
              "image_size": 64, "window_size": 2},
    "space": {"removable": [0], "width_multiple": 16},
    "data": {"source": "synthetic", "workers": 0, "prompts_per_image": 1,
             "synthetic_train": {"images": 40, "size_px": 64},
             "synthetic_val": {"images": 4, "size_px": 64, "seed": 1}},
    "sandwich": {"random_subnets": 0, "largest_only_steps": 0},
    "optim": {"steps": 2, "warmup_steps": 1, "global_batch": 8},
    "engine": {"device": "cpu", "threads": 1},
    "checkpoint": {"every_steps": 2, "validate_every_steps": 2, "overlay_images": 0},
}  # fmt: skip


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory(dir=args.shared) as name:
        folder = Path(name)
        (folder / "traces").mkdir()
        code = walk(args, folder)
        traces = [json.loads(file.read_text()) for file in (folder / "traces").iterdir()]
    stacks = [stack for trace in traces for stack in trace["stacks"]]
    if code != 0 or not any(stack["goal"] for stack in stacks):
        print(f"the command ended with {code} and did not reach its goal", file=sys.stderr)
        return 2
    row = summary(args, traces, stacks)
    print(json.dumps(row))
    return int(args.gate and row["files"] > MOST_FILES[args.journey])


def walk(args, folder):
    """Run the command; each of its processes leaves a file in `folder`/traces."""
    python = folder / "python"
    goals = ",".join(args.goal or GOALS[args.journey])
    words = [sys.executable, __file__, "--trace", folder / "traces", python, args.tree, goals]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    python.chmod(0o755)
    flags = ["--nodes", args.nodes, "--wait", "--time", "30"]
    flags = flags if args.nodes else ["--cluster", "inline"]
    if args.journey == "train":
        (folder / "tiny.yaml").write_text(json.dumps(TINY))
        flags += ["--config", folder / "tiny.yaml", "--run", folder / "run"]
    else:
        flags += ["--run", args.run, "--out", folder / "search", "--trials", 4, "--device", "cpu"]
        flags += ["--threads", 1, "--population", 4]
    command = [python, Path("launch") / f"{args.journey}.py", *flags]
    environment = {**os.environ, "PYTHONPATH": str(args.tree), "OMP_NUM_THREADS": "1"}
    return subprocess.run(map(str, command), cwd=args.tree, env=environment).returncode


def summary(args, traces, stacks):
    """Print each stack once and count."""
    floors, path, climbs, shown = read_floors(args.tree), set(), set(), set()
    for stack in sorted(stacks, key=lambda stack: stack["when"]):
        frames = [tuple(frame) for frame in stack["frames"]]
        path.update(frames)
        for (above, caller), (below, called) in zip(frames, frames[1:], strict=False):
            if floor(floors, below) > floor(floors, above):
                climbs.add(f"{above}:{caller} -> {below}:{called}")
        text = " > ".join(f"{file}:{function}" for file, function in frames)
        if text not in shown:
            print(f"{stack['what']}\n  {text}")
        shown.add(text)
    files = sorted({file for file, _ in path})
    calls = {(*caller, called) for trace in traces for caller, called in trace["calls"]}
    calls = {call for call in calls if call[:2] in path}
    beside = sorted({called for _, _, called in calls} - set(files))
    climbs |= {
        f"{file}:{function} -> {called}"
        for file, function, called in calls
        if floor(floors, called) > floor(floors, file) and called not in files
    }
    print(f"on the path: {' '.join(files)}\nbeside it: {' '.join(beside)}")
    print("climbs:", *sorted(climbs), sep="\n  ")
    return {"journey": args.journey, "nodes": args.nodes, "files": len(files),
            "beside": len(beside), "climbs": len(climbs)}  # fmt: skip


def read_floors(tree):
    """Height of each floor, from the import contract of `tree`; 0 is the lowest."""
    text = (Path(tree) / "pyproject.toml").read_text()
    layers = re.findall(r'"(.*?)"', re.search(r"^layers = \[(.*?)^\]", text, re.M | re.S)[1])
    return {
        name.strip().partition(".")[2]: height
        for height, layer in enumerate(reversed(layers))
        for name in layer.split("|")
    }


def floor(floors, file):
    """The commands' door is above all floors."""
    return floors.get(file.partition("/")[0].removesuffix(".py"), len(floors))


class Trace:
    """What one process writes down: stacks at its goals, and which file each function calls."""

    def __init__(self, folder, tree, goals):
        self.file = Path(folder) / f"{os.uname().nodename}-{os.getpid()}.json"
        self.package = f"{tree}/supersam/"
        self.goals = {tuple(goal.split(":")) for goal in goals.split(",")}
        self.stacks, self.calls, self.is_done = [], set(), False
        self.shorter = {}

    def name(self, frame):
        """File below the package, and function; None for other code. A job runs a copy of it."""
        path = frame.f_code.co_filename
        if path not in self.shorter:
            _, found, rest = path.rpartition("/supersam/")
            self.shorter[path] = rest if found and "site-packages" not in path else None
        short = self.shorter[path]
        return None if short is None else (short, frame.f_code.co_name)

    def see(self, frame, event, _):
        if event != "call" or self.is_done:
            return
        called = self.name(frame)
        if called is not None and called[1] != "<module>":
            caller = frame.f_back
            while caller is not None and self.name(caller) is None:
                caller = caller.f_back
            if caller is not None:
                self.calls.add((self.name(caller), called[0]))
            if called in self.goals:
                self.goals.remove(called)
                self.is_done = not self.goals
                self.keep(frame, f"goal {called[0]}:{called[1]}", goal=True)
        elif frame.f_code.co_name == "__init__" and frame.f_code.co_filename.endswith(
            "/subprocess.py"
        ):
            words = frame.f_locals.get("args", ())
            words = [str(word) for word in ([words] if isinstance(words, str) else words)]
            if words[0].endswith("sbatch") or any(w.startswith("supersam.") for w in words):
                self.keep(frame, f"starts {' '.join(words)[:80]}", goal=False)

    def keep(self, frame, what, *, goal):
        frames = []
        while frame is not None:
            name = self.name(frame)
            if name is not None and name[1] != "<module>":
                frames.append(name)
            frame = frame.f_back
        when = os.times().elapsed
        self.stacks.append({"what": what, "goal": goal, "when": when, "frames": frames[::-1]})
        self.write()

    def write(self):
        values = {"stacks": self.stacks, "calls": sorted(self.calls)}
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(values))
        partial.rename(self.file.with_suffix(".json"))


def be_python(folder, python, tree, goals, *words):
    """Do what `python WORDS` does, under the profiler; processes that it starts do the same."""
    sys.executable, words = python, list(words)
    while words[0].startswith("-") and words[0] not in ("-m", "-c"):
        words = words[2:] if words[0] in ("-X", "-W") else words[1:]
    if any(re.search(OWN, word) for word in words):  # Ray's own processes are slow enough
        trace = Trace(folder, tree, goals)
        atexit.register(trace.write)
        threading.setprofile(trace.see)
        sys.setprofile(trace.see)
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journey", choices=list(GOALS))
    parser.add_argument("--nodes", type=int, help="of the Slurm job; 0 stays in this process")
    parser.add_argument("--run", type=Path, help="trained run to search")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to walk")
    parser.add_argument("--goal", action="append", help="FILE:FUNCTION below supersam/")
    parser.add_argument("--shared", type=Path, help="folder that all hosts see")
    parser.add_argument("--gate", action="store_true")
    args = parser.parse_args()
    if args.nodes is None:
        args.nodes = {"train": 8, "search": 4}[args.journey]
    if args.journey == "search" and args.run is None:
        parser.error("search needs --run DIR, a trained run")
    args.tree = args.tree.resolve()
    return args


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        be_python(*sys.argv[2:])
    else:
        sys.exit(main())
