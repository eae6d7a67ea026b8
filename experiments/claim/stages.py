"""The stages: which command each is, and what it needs. Every command is one that users type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.claim.forms import SIZES, Form
from supersam.model.sam import infer_shape, read_checkpoint
from supersam.space import EncoderShape, SubnetSpec, subnet_cost

Words = list[str]

_TARGET_LR = 2e-4
"""At 5e-4 and above the loss on nuclei rises after the warm-up, and the model begins to look at
the image 150 steps later (docs/results.md)."""
_DISTILLED = ["--loss.distill"]


@dataclass(frozen=True)
class Stage:
    """One command of the experiment. Its result is kept, so that it runs once."""

    name: str
    command: str
    """Name of the command: shard, train, design, search, export."""
    words: Callable[[], Words]
    """Its flags; asked for when the stages before it have ended."""
    after: tuple[str, ...] = ()
    """Stages that must have ended well."""
    arm: str = ""
    """What its computation counts for: `one supernet`, `separate trainings`, or neither."""


@dataclass(frozen=True)
class Plan:
    """Where everything lies, and how large it is."""

    data: Path
    """Folder of the real images, in the layouts that README.md lists."""
    out: Path
    form: Form
    seeds: int = 1
    checkpoint: Path | None = None
    """Pretrained weights; None pretrains a model first."""
    threads: int = 1
    """Of the pretraining, beside which nothing else can run; every other stage has one."""
    options: Sequence[str] = field(default_factory=tuple)
    """Further flags of every training, such as --nodes 2 --wait."""

    def shards(self, name: str) -> Path:
        """Folder of a set's shards."""
        return self.out / "data" / name

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.out / "runs" / name

    @property
    def pretrained(self) -> Path:
        """What the target's models start from."""
        return self.checkpoint or self.run("pretrained")

    def stages(self) -> list[Stage]:
        """All stages, in an order in which they can run."""
        stages = [*_shards(self), *([] if self.checkpoint else _pretrain(self))]
        for seed in range(self.seeds):
            stages += _supernet(self, seed)
        for part in (_subnets, _references, _trained_alone):
            for seed in range(self.seeds):
                stages += part(self, seed)
        return stages


def _shards(plan: Plan) -> Iterator[Stage]:
    """Objects below 100 px are left out: an outline one pixel too wide decides their IoU."""

    def stage(name: str, *words: str) -> Stage:
        common = ["--min-area-px", "100", "--out", str(plan.shards(name))]
        return Stage(f"shards {name}", "shard", lambda: [*words, *common])

    nuclei = str(plan.out / "nuclei")
    sa1b = ("--source", "sa1b", "--root")
    yield stage("nuclei-train", *sa1b, nuclei, "--split", "train")
    tiles = ("--tile-px", str(plan.form.tile_px))
    yield stage("nuclei-select", *sa1b, nuclei, "--split", "select", *tiles)
    yield stage("nuclei-test", *sa1b, nuclei, "--split", "test", *tiles)
    if plan.checkpoint is not None:
        return
    natural = str(plan.data / "natural_sa1b")
    yield stage("natural-train", *sa1b, natural, "--split", "train")
    yield stage("natural-val", *sa1b, natural, "--split", "val")
    streets = ("--source", "labelmap", "--root", str(plan.data / "streets_labelmap"))
    labels = ("--background-id", "null", "--ignore-id", "11")
    yield stage("streets-train", *streets, "--split", "training", *labels)
    membranes = ("--source", "tiff", "--root", str(plan.data / "membrane_tiff"))
    yield stage("membranes-train", *membranes, "--split", "training")
    drawings = ("--synthetic.images", str(plan.form.drawings), "--synthetic.size-px", "192")
    yield stage("drawings", "--source", "synthetic", *drawings)
    yield stage("plain", "--source", "synthetic", "--synthetic.plain", *drawings)


def _pretrain(plan: Plan) -> Iterator[Stage]:
    """Plain drawings, which teach a model to look; then everything, as a pretrained model has."""
    form = plan.form

    def stage(name: str, run: str, sets: Sequence[str], steps: int, *options: str) -> Stage:
        words = [
            *_training(plan, run, steps=steps, lr=7e-4, seed=0),
            *("--data.train", *(str(plan.shards(name)) for name in sets)),
            *("--data.val", str(plan.shards("natural-val"))),
            *("--data.augment.crop-px", *map(str, form.pretrain_crop_px)),
            *("--engine.threads", str(plan.threads), "--optim.clip-norm", "1"),
            *("--sandwich.largest-only-steps", str(steps), *options),
        ]
        after = tuple(f"shards {name}" for name in (*sets, "natural-val"))
        return Stage(name, "train", lambda: words, after)

    yield stage("pretrain plain", "plain", ["plain"], form.plain_steps)
    sets = ("natural-train", "drawings", "streets-train", "membranes-train", "plain")
    weights = ("--data.train-weights", *map(str, form.pretrain_weights))
    start = ("--model.checkpoint", str(plan.run("plain")))
    last = stage("pretrain", "pretrained", sets, form.pretrain_steps, *weights, *start)
    yield replace(last, after=("pretrain plain", *last.after))


def _supernet(plan: Plan, seed: int) -> Iterator[Stage]:
    """The whole model fine-tuned, the space designed from it, the supernet, the search."""
    form, whole, supernet = plan.form, f"first-{seed}", f"supernet-{seed}"
    start = () if plan.checkpoint else ("pretrain",)
    yield Stage(
        whole, "train",
        lambda: _whole(plan, whole, form.whole_steps, seed),
        (*start, "shards nuclei-train", "shards nuclei-select"), "one supernet",
    )  # fmt: skip
    yield Stage(f"design-{seed}", "design", lambda: _design(plan, seed), (whole,), "one supernet")
    yield Stage(
        supernet, "train",
        lambda: _sandwich(plan, supernet, seed, _DISTILLED),
        (f"design-{seed}",), "one supernet",
    )  # fmt: skip
    yield Stage(
        f"search-{seed}", "search", lambda: _search(plan, seed), (supernet,), "one supernet"
    )


def _subnets(plan: Plan, seed: int) -> Iterator[Stage]:
    """The search's choice at each size: as it is, and tuned alone for a short time."""
    for size in SIZES:
        spec = chosen(plan, seed, size)
        for tuned in (0, plan.form.tune_steps):
            name = export_name(seed, size, tuned=tuned > 0)
            words = [
                *("--run", str(plan.run(f"supernet-{seed}")), "--subnet", str(spec)),
                *("--out", str(plan.out / "exports" / name)),
                *("--images", str(plan.form.validate_images)),  # the report measures all
                *(("--finetune-steps", str(tuned)) if tuned else ()),
            ]
            yield Stage(f"export {name}", "export", lambda w=words: w, (f"choose-{seed}",),
                        "one supernet")  # fmt: skip


def _references(plan: Plan, seed: int) -> Iterator[Stage]:
    """The whole model fine-tuned, and the supernet in random order."""
    form = plan.form
    needs = ("shards nuclei-train", *(() if plan.checkpoint else ("pretrain",)))
    wholes = [("whole", form.whole_total)]
    if form.equal_compute:
        wholes.append(("whole-equal", form.whole_equal_compute))
    for name, steps in wholes:
        run = f"{name}-{seed}"
        yield Stage(run, "train", lambda r=run, s=steps: _whole(plan, r, s, seed), needs)
    run = f"random-order-{seed}"
    shuffled = [
        *("--prioritize.when", "start", "--prioritize.score", "random"),
        *("--prioritize.seed", str(seed), *_DISTILLED),
    ]
    yield Stage(run, "train", lambda r=run: _sandwich(plan, r, seed, shuffled), (f"design-{seed}",))


def _trained_alone(plan: Plan, seed: int) -> Iterator[Stage]:
    """Models of each size without a supernet."""
    for size in SIZES:
        teacher = ["--loss.teacher", str(plan.run(f"first-{seed}"))]
        for kind, options in (("prune", teacher), ("uniform", [])):
            name = control_name(kind, seed, size)
            yield Stage(
                name, "train",
                lambda n=name, k=kind, s=size, o=options: _alone(plan, n, k, seed, s, o),
                (f"choose-{seed}",), "separate trainings",
            )  # fmt: skip


def export_name(seed: int, size: float, *, tuned: bool) -> str:
    """Folder of an exported subnet."""
    return f"minus-{round(100 * size)}-seed-{seed}" + ("-tuned" if tuned else "")


def control_name(kind: str, seed: int, size: float) -> str:
    """Run of a control of one size."""
    return f"{kind}-{round(100 * size)}-{seed}"


def chosen(plan: Plan, seed: int, size: float) -> Path:
    """File with the subnet that the search chose at a size."""
    return plan.out / "subnets" / f"chosen-{round(100 * size)}-{seed}.json"


def shrunk(plan: Plan, kind: str, seed: int, size: float) -> Path:
    """File with the subnet of a control: `prune` (by sensitivity) or `uniform`."""
    return plan.out / "subnets" / f"{control_name(kind, seed, size)}.json"


def _model(form: Form) -> Words:
    layers = [str(layer) for layer in form.global_layers]
    return [
        *("--model.name", "custom", "--model.embed-dim", str(form.embed_dim)),
        *("--model.depth", str(form.depth), "--model.num-heads", str(form.num_heads)),
        *("--model.global-layers", *layers, "--model.image-size", str(form.image_size)),
        *("--model.window-size", str(form.window_size)),
    ]


def _training(plan: Plan, run: str, *, steps: int, lr: float, seed: int) -> Words:
    """What all trainings have in common."""
    form = plan.form
    model = [] if plan.checkpoint is not None else _model(form)
    return [
        *("--config", str(Path(__file__).with_name("training.yaml"))),
        *("--name", run, "--run", str(plan.run(run)), *model),
        *("--optim.steps", str(steps), "--optim.lr", str(lr), "--optim.seed", str(seed)),
        *("--optim.warmup-steps", str(max(1, steps // 20))),
        *("--optim.global-batch", str(form.batch)),
        *("--space.removable", *(str(layer) for layer in form.removable)),
        *("--data.prompts-per-image", str(form.prompts)),
        *("--checkpoint.every-steps", str(max(1, steps // 5))),
        *("--checkpoint.validate-every-steps", str(steps)),
        *("--checkpoint.validate-images", str(form.validate_images), *plan.options),
    ]


def _target(plan: Plan) -> Words:
    return [
        *("--data.train", str(plan.shards("nuclei-train"))),
        *("--data.val", str(plan.shards("nuclei-select"))),
        *("--data.augment.crop-px", *map(str, plan.form.crop_px)),
        # The pretrained model has left empty masks behind; dice alone finds the outline best. From
        # random weights it ends in saturated masks, and learns no more (docs/results.md).
        *("--loss.mask", "dice"),
    ]


def _whole(plan: Plan, run: str, steps: int, seed: int) -> Words:
    return [
        *_training(plan, run, steps=steps, lr=_TARGET_LR, seed=seed),
        *_target(plan),
        *("--model.checkpoint", str(plan.pretrained)),
        *("--sandwich.largest-only-steps", str(steps)),
    ]


def _design(plan: Plan, seed: int) -> Words:
    form = plan.form
    return [
        *("--checkpoint", str(plan.run(f"first-{seed}"))),
        *("--data", str(plan.shards("nuclei-train"))),
        *("--out", str(space_file(plan, seed)), "--threads", "1"),
        *("--limits.elastic-heads", "--limits.smallest-m", f"{0.3 * whole_params_m(plan):.2f}"),
        *("--limits.max-miou-drop", "1.0", "--calibration.images", str(min(48, 6 * form.batch))),
        *("--scan.max-removed", str(len(form.removable))),
    ]


def space_file(plan: Plan, seed: int) -> Path:
    """The designed search space of a seed."""
    return plan.out / "designs" / f"space-{seed}.yaml"


def whole_params_m(plan: Plan) -> float:
    """Millions of parameters of the whole model."""
    form = plan.form
    if plan.checkpoint is not None:
        shape = infer_shape(read_checkpoint(plan.checkpoint))
        if shape is None:
            raise SystemExit(f"error: {plan.checkpoint} holds no SAM of known sizes")
    else:
        shape = EncoderShape(
            form.embed_dim, form.depth, form.num_heads, form.global_layers,
            image_size=form.image_size, window_size=form.window_size,
        )  # fmt: skip
    return subnet_cost(SubnetSpec.full(shape), shape).params_m


def _sandwich(plan: Plan, run: str, seed: int, options: Words) -> Words:
    """Sandwich steps from the design's weights."""
    design = space_file(plan, seed).with_name(f"space-{seed}-design")
    return [
        *_training(plan, run, steps=plan.form.sandwich_steps, lr=_TARGET_LR, seed=seed),
        *("--config", str(design / "train.yaml")),
        *_target(plan),
        *("--sandwich.largest-only-steps", "0", *options),
    ]


def _search(plan: Plan, seed: int) -> Words:
    return [
        *("--run", str(plan.run(f"supernet-{seed}")), "--trials", str(plan.form.trials)),
        *("--data", str(plan.shards("nuclei-select")), "--seed", str(seed), "--threads", "1"),
        *("--searcher", "nsga2", "--objectives", "miou", "params_m", "--cluster", "inline"),
        *("--protocol.prompt", "point"),
        *("--protocol.images", str(plan.form.search_images or "null")),
    ]


def _alone(plan: Plan, run: str, kind: str, seed: int, size: float, options: Words) -> Words:
    """One subnet trained alone for as many steps as the supernet: all steps are its own."""
    design = space_file(plan, seed).with_name(f"space-{seed}-design")
    start = ["--config", str(design / "train.yaml")] if kind == "prune" else [
        *("--model.checkpoint", str(plan.pretrained), "--space.file", str(space_file(plan, seed)))
    ]  # fmt: skip
    steps = plan.form.sandwich_steps if kind == "prune" else plan.form.whole_total
    return [
        *_training(plan, run, steps=steps, lr=_TARGET_LR, seed=seed),
        *start,
        *_target(plan),
        *("--sandwich.only", str(shrunk(plan, kind, seed, size)), *options),
    ]
