"""The experiments of docs/results.md that want a GPU, side by side, until a deadline.

python -m experiments.gpu_experiments --data data --out results --minutes 5.3
python -m experiments.gpu_experiments --data data --out results --smoke      two steps, any machine

Models of this size leave a GPU idle between kernels, so several processes share it. Steps are
chosen by the speed that the first training shows and the time that is left. Writes
OUT/results.json after each part, OUT/logs.txt, and the nuclei supernet's weights in files below 15
MiB. --data holds nuclei/train, nuclei/val (tiles of 64 px), streets/train and streets/val.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.in_turn import print_record
from experiments.jobs import Job, run_jobs
from experiments.trained import ROOT, load_trained

FRACTIONS = {
    "mlp": (0.25, 0.5, 0.75),
    "heads": (0.34, 0.67),  # one and two of vit_t's three
    "embed": (0.25, 0.5, 0.75),
}
START_S = 14.0  # of a training's start and end; measured on two CPU cores
PART_BYTES = 14 * 2**20
SLOWER = 2.5  # a step beside the other jobs, against one alone


def main():
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(args)
    run_jobs(
        [job for job in plan.jobs() if not args.only or job.name in args.only],
        plan.at(1.0),
        slots=args.slots,
        folder=plan.work,
        report=lambda ended: report(plan, ended),
    )
    print_record("gpu_experiments", {"seconds": time.monotonic() - plan.started})


class Plan:
    """Which experiments there are, in the order of their importance, and how long they may take."""

    def __init__(self, args):
        self.args = args
        self.started = time.monotonic()
        self.work = args.work or Path(tempfile.mkdtemp(prefix="gpu_experiments-"))
        self.work.mkdir(parents=True, exist_ok=True)
        self.nuclei, self.streets = args.data / "nuclei", args.data / "streets"

    def at(self, share):
        """A moment of the time that is allowed, by `time.monotonic`."""
        return self.started + share * 60 * self.args.minutes - 4

    def left(self, until):
        return max(0.0, self.at(until) - time.monotonic())

    def jobs(self):
        """The jobs, most important first."""
        smoke, work = self.args.smoke, self.work
        cost = ["design_cost.py", "--model", "vit_t" if smoke else "vit_b"]
        cost += ["--images", 1 if smoke else 16, "--json", work / "design_cost.json"]
        cost += ["--parts", "hash", "wanda", "measure", "taylor", "magnitude", "prioritize"]
        # While the first training starts: it is over before that computes.
        yield Job("design_cost", experiment(cost), weight=0, results=work / "design_cost")
        yield self.training(
            "nuclei_start", "nuclei_vit_t", 2 if smoke else 400, batch=32, lr=1e-3,
            crop=(56, 136),
        )  # fmt: skip
        yield self.training(
            "nuclei_model", "nuclei_vit_t", 2 if smoke else 700, batch=32, lr=7e-4,
            crop=(56, 72), start="nuclei_start", extra=["--loss.mask", "dice"],
        )  # fmt: skip
        yield self.training(
            "streets_model", "streets_vit_t", 2 if smoke else 600, batch=16, lr=7e-4,
            crop=(200, 280), start="nuclei_start", data=self.streets,
        )  # fmt: skip
        yield Job(
            "nuclei_supernet", self.supernet, after=["nuclei_model"], weight=2, until=self.at(0.86)
        )
        yield Job("arms", self.arms, after=["nuclei_model"], weight=3, until=self.at(1.0),
                  results=work / "arms")  # fmt: skip
        yield Job("wide_supernet", self.wide, after=["nuclei_model"], until=self.at(0.75))
        yield Job("rank_correlation", self.rank, after=["wide_supernet"], weight=2,
                  results=work / "wide_supernet/results/rank_correlation")  # fmt: skip
        for name, model, val in (
            ("nuclei", "nuclei_model", self.nuclei / "val"),
            ("streets", "streets_model", self.streets / "val"),
        ):
            train = val.parent / "train"
            for dimension, fractions in FRACTIONS.items():
                out = work / f"prefix_{name}_{dimension}"
                command = ["prefix_miou", "--run", work / model, "--calibration", train]
                command += ["--data", val, "--out", out, "--dimensions", dimension]
                command += ["--fractions", *(fractions[:1] if smoke else fractions)]
                command += ["--calibration-images", 4 if smoke else 64]
                command += ["--images", 2 if smoke else 300, "--seeds", 2 if smoke else 5]
                yield Job(out.name, experiment(command), after=[model], results=out)
            out = work / f"sensitivity_{name}"
            command = ["sensitivity_tau", "--run", work / model, "--calibration", train]
            command += ["--data", val, "--out", out, "--calibration-images", 4 if smoke else 64]
            command += ["--images", 2 if smoke else 300, "--sets", 3 if smoke else 30]
            command += ["--max-removed", 1 if smoke else 4]
            yield Job(out.name, experiment(command), after=[model], results=out)
        table = ["subnet_table", "--run", work / "nuclei_supernet", "--checkpoints", "last"]
        table += ["--images", 4 if smoke else 500, "--random", 1 if smoke else 5]
        yield Job("nuclei_table", experiment(table), after=["nuclei_supernet"], weight=0,
                  results=work / "nuclei_supernet/results")  # fmt: skip

    def training(self, name, config, steps, *, batch, lr, crop, start=None, data=None, extra=()):
        """One model, not yet a supernet."""
        data = data or self.nuclei
        options = ["--sandwich.largest-only-steps", steps, "--data.augment.crop-px", *crop]
        options += ["--model.checkpoint", self.work / start if start else "None"]
        command = self.command(name, config, steps, batch=batch, lr=lr, data=data)
        return Job(name, [*command, *options, *extra], after=[start] if start else [])

    def command(self, name, config, steps, *, batch, lr, data=None):
        """A training with launch/train.py."""
        batch = 2 if self.args.smoke else batch
        data = data or self.nuclei
        command = [ROOT / "launch/train.py", "--config", ROOT / f"configs/train/{config}.yaml"]
        command += ["--run", self.work / name, "--data.train", data / "train"]
        command += ["--data.val", data / "val", "--optim.steps", steps, "--optim.lr", lr]
        command += ["--optim.global-batch", batch, "--optim.warmup-steps", steps // 12]
        command += ["--data.workers", 1 if self.args.smoke else 4, "--data.box-jitter", 0.02]
        command += ["--data.prompts-per-image", 2 if self.args.smoke else 8]
        command += ["--data.augment.brightness", 0.1, "--engine.threads", 1]
        command += ["--checkpoint.every-steps", 300, "--checkpoint.keep-last", 1]
        command += ["--checkpoint.validate-every-steps", steps, "--checkpoint.overlay-images", 0]
        command += ["--engine.precision", self.precision()]
        return [sys.executable, *command, "--checkpoint.validate-images", 4]

    def supernet(self):
        """The nuclei supernet of the shipped space, as long as there is time."""
        steps = self.steps(until=0.84, passes=3, most=3000)
        command = self.command("nuclei_supernet", "nuclei_supernet", steps, batch=32, lr=5e-4)
        command += ["--model.checkpoint", self.work / "nuclei_model"]
        command += ["--data.augment.crop-px", 56, 72, "--sandwich.largest-only-steps", 0]
        return [*command, "--checkpoint.pin"]

    def wide(self):
        """A supernet of the wide space, whose subnets differ much in size."""
        steps = min(400, self.steps(until=0.66, passes=3, most=400))
        command = self.command("wide_supernet", "nuclei_supernet", steps, batch=16, lr=5e-4)
        command += ["--model.checkpoint", self.work / "nuclei_model", "--space.preset", "wide"]
        command += ["--data.augment.crop-px", 56, 72, "--sandwich.largest-only-steps", 0]
        return [*command, "--checkpoint.pin"]

    def arms(self):
        """Supernet training with and without prioritization and distillation, seed by seed."""
        smoke, work = self.args.smoke, self.work
        share = self.left(0.97) / 3 - 22  # three trainings at once, three after another; scoring
        alone = 3 * self.pass_s() * SLOWER
        steps = 2 if smoke else int(max(60, min(300, share / alone)))
        command = ["supernet_arms", "--start", work / "nuclei_model", "--steps", steps]
        command += ["--config", ROOT / "configs/train/nuclei_vit_t.yaml"]
        command += ["--train", self.nuclei / "train", "--data", self.nuclei / "val"]
        command += ["--out", work / "arms", "--arms", "sandwich", "wanda", "distilled"]
        command += ["--seeds", 1 if smoke else 3, "--subnets", 1 if smoke else 10]
        command += ["--images", 2 if smoke else 200, "--at-once", 3, "--lr", 3e-4]
        command += ["--save-every", steps, "--options"]
        command += ["--data.prompts-per-image", 2 if smoke else 8, "--space.width-multiple", 32]
        command += ["--space.mlp-fractions", 0.125, 0.25, 0.5, 1.0]
        command += ["--loss.mask", "dice"]
        command += ["--data.augment.crop-px", 56, 72, "--data.box-jitter", 0.02]
        command += ["--checkpoint.overlay-images", 0, "--data.workers", 1 if smoke else 2]
        command += ["--engine.precision", self.precision()]
        return experiment([*command, "--optim.global-batch", 2 if smoke else 16])

    def rank(self):
        """Subnets of the wide supernet, trained alone."""
        smoke = self.args.smoke
        command = ["rank_correlation", "--run", self.work / "wide_supernet"]
        command += ["--subnets", 4 if smoke else 8, "--steps", 2 if smoke else 100]
        command += ["--lr", 2e-5, "--images", 2 if smoke else 300, "--at-once", 3]
        command += ["--options", "--data.workers", 1 if smoke else 2]
        return experiment([*command, "--engine.precision", self.precision()])

    def precision(self):
        return "fp32" if self.args.smoke else "bf16"

    def steps(self, *, until, passes, most):
        """Sandwich steps for which there is time beside the other jobs."""
        if self.args.smoke:
            return 2
        each = passes * self.pass_s() * SLOWER
        return int(max(50, min(most, (self.left(until) - START_S) / each)))

    def pass_s(self):
        """Seconds of a step of one subnet, where nothing else ran: what nuclei_start reports."""
        log = (self.work / "nuclei_start.log").read_text()
        rates = [float(rate) for rate in re.findall(r"([\d.]+) images/s", log)]
        return 32 / (max(rates[len(rates) // 2 :], default=0.0) or 640.0)


def experiment(command):
    """The command of another experiment; its name comes first."""
    name, *rest = command
    return [sys.executable, "-m", f"experiments.{name}", *rest]


def report(plan, done):
    """Write everything that is known."""
    out = plan.args.out
    record = {job.name: describe(job) for job in done}
    (out / "results.json").write_text(json.dumps(record, indent=1))
    (out / "logs.txt").write_text("".join(f"=== {job.name}\n{tail(job)}\n" for job in done))
    if done[-1].name == "nuclei_supernet":
        save_weights(plan.work / "nuclei_supernet", out)


def describe(job):
    """How a job went, and the files that it wrote."""
    files = {}
    if job.results is not None:
        folder = job.results if job.results.is_dir() else job.results.parent
        prefix = "" if job.results.is_dir() else f"{job.results.name}."
        for path in sorted(folder.glob(f"{prefix}*")):
            if path.suffix in (".json", ".jsonl", ".md") and path.stat().st_size < 2**19:
                text = path.read_text()
                files[path.name] = json.loads(text) if path.suffix == ".json" else text
    return {"command": [str(word) for word in job.command], "start_s": job.started_s,
            "seconds": job.seconds, "exit_code": job.exit_code, "files": files}  # fmt: skip


def tail(job, characters=60_000):
    return job.log.read_text(errors="replace")[-characters:]


def save_weights(run, out):
    """The weights of a run in files small enough to travel, and what its folder says of them."""
    if not (run / "checkpoints").is_dir():
        return
    state = load_trained(run)[0].cpu().state_dict()
    parts, size = [{}], 0
    for name, tensor in state.items():
        if size + tensor.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    for number, part in enumerate(parts, start=1):
        save_file(part, out / f"nuclei_supernet-{number}.safetensors")
    told = {name: (run / name).read_text() for name in ("run.yaml", "space.yaml")}
    (out / "nuclei_supernet.json").write_text(json.dumps(told, indent=1))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.3, help="after which everything ends")
    parser.add_argument("--slots", type=int, default=8, help="weights of jobs at once")
    parser.add_argument("--work", type=Path, help="folder of runs; a temporary one without it")
    parser.add_argument("--only", nargs="*", help="these jobs; --work holds what they need")
    parser.add_argument("--smoke", action="store_true", help="two steps of everything")
    return parser.parse_args()


if __name__ == "__main__":
    main()
