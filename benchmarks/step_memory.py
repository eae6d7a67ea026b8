"""Peak memory of a sandwich step against the largest subnet's step alone, and against predictions.

python -m benchmarks.step_memory
python -m benchmarks.step_memory --compare vit_b:8:in_kernel vit_b:8:sdpa:recomputed [--json FILE]

With --compare, on a GPU: for each MODEL:IMAGES:ATTENTION[:recomputed], in bf16, with an optimizer's
state, what `--dry-run` predicts beside `torch.cuda.max_memory_allocated` of two sandwich steps.
`default` stands for a list for the GPU's size. With --gate, exits with 1 where one is off by more
than a tenth.

Without it, on a CPU, counts the bytes of live tensors, from PyTorch's own record of allocations:
the resident set of the process also holds what the C library keeps of freed memory, which depends
on its fragmentation.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.in_turn import print_record
from supersam.config import LossConfig, SpaceConfig, TrainRun
from supersam.data.sample import Batch
from supersam.model import SamSupernet, load_sam
from supersam.model.losses import subnet_loss
from supersam.space import SHAPES, build_space, resolve_shape
from supersam.training.engine import freeze_untrained, trainable_parameters
from supersam.training.sandwich import SandwichSampler
from supersam.training.step_memory import predict_memory

LIMIT = 1.1
DEFAULT = [
    "vit_b:8:sdpa",
    "vit_b:16:sdpa",
    "vit_b:16:in_kernel",
    "vit_b:16:sdpa:recomputed",
    "vit_b:4:reference",
    "vit_l:6:sdpa",
    "vit_l:6:in_kernel",
    "vit_h:4:sdpa",
    "vit_h:4:in_kernel",
]


def main():
    args = parse_args()
    if args.compare:
        return compare(args)
    torch.set_num_threads(1)
    space = build_space(SpaceConfig(), SHAPES["vit_t"])
    supernet = SamSupernet(load_sam("vit_t"), space)
    batch = random_batch(args.images, args.prompts, SHAPES["vit_t"].image_size)
    subnets = SandwichSampler(space, seed=0, random_subnets=2).draw(0)
    peaks = {
        "largest": peak_mib(supernet, batch, subnets[:1]),
        "sandwich": peak_mib(supernet, batch, subnets),
    }
    ratio = peaks["sandwich"] / peaks["largest"]
    for name, peak in peaks.items():
        print(f"{name:10}{peak:10.1f} MiB of live tensors at the peak, weights not counted")
    print(f"sandwich / largest: {ratio:.3f} (limit {LIMIT})")
    print(json.dumps({"step_memory": {**peaks, "ratio": ratio}}))
    return int(args.gate and ratio > LIMIT)


def compare(args):
    """Predicted against allocated GiB of a rank, for each of the cases."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is visible: --compare measures what its allocator holds")
    rows = {}
    for case in DEFAULT if args.compare == ["default"] else args.compare:
        try:
            run, images = parse_case(case, args.prompts)
            row = rows[case] = compare_case(run, images)
        except torch.cuda.OutOfMemoryError as error:
            rows[case] = {"failed": str(error).splitlines()[0]}
            print(f"{case:34} {rows[case]['failed']}", flush=True)
            continue
        line = f"predicted {row['predicted_gib']:7.2f} GiB, allocated {row['allocated_gib']:7.2f}"
        print(
            f"{case:34} {line}, reserved {row['reserved_gib']:7.2f}: {row['ratio']:.3f}", flush=True
        )
    print_record("memory_predicted", rows)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))
    off = [case for case, row in rows.items() if abs(row.get("ratio", 9) - 1) > 0.1]
    if args.gate and off:
        print(f"off by more than a tenth: {'; '.join(off)}", file=sys.stderr)
    return int(args.gate and bool(off))


def parse_case(case, prompts):
    """MODEL:IMAGES:ATTENTION[:recomputed] as a run and its images at once."""
    try:
        model, images, attention, *more = case.split(":")
        images = int(images)
    except ValueError:
        raise SystemExit(f"{case}: write MODEL:IMAGES:ATTENTION[:recomputed]") from None
    if more not in ([], ["recomputed"]) or images < 1:
        raise SystemExit(f"{case}: write MODEL:IMAGES:ATTENTION[:recomputed]")
    values = {
        "model": {"name": model, "attention": attention},
        "space": {"preset": "published"},
        "data": {"source": "synthetic", "prompts_per_image": prompts},
        "engine": {"precision": "bf16", "checkpoint_activations": bool(more)},
    }
    return TrainRun.model_validate(values), images


def compare_case(run, images):
    """One case. The optimizer state is allocated as DeepSpeed's: three copies of the weights."""
    predicted = predict_memory(run, world_size=1, on_gpu=True, images=images)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    shape = resolve_shape(run.model)
    space = build_space(run.space, shape)
    supernet = SamSupernet(load_sam(shape), space, attention=run.model.attention).cuda()
    freeze_untrained(supernet, run.optim, run.data)
    supernet.prepare_training(
        checkpoint_activations=run.engine.checkpoint_activations, compiled=False
    )
    state = [torch.empty_like(p) for _, p in trainable_parameters(supernet) for _ in range(3)]
    batch = random_batch(images, run.data.prompts_per_image, shape.image_size)
    batch = batch.to(torch.device("cuda"))
    for subnet in SandwichSampler(space, seed=0, random_subnets=1).draw(0) * 2:
        with supernet.activated(subnet), torch.autocast("cuda", torch.bfloat16):
            prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
        subnet_loss(prediction, batch, run.loss, teacher=None).total.backward()
        del prediction
    allocated, reserved = (
        peak() / 2**30 for peak in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    )
    del state
    return {
        "predicted_gib": predicted.total / 2**30,
        "predicted_step_gib": predicted.step / 2**30,
        "allocated_gib": allocated,
        "reserved_gib": reserved,
        "ratio": predicted.total / 2**30 / allocated,
    }


def peak_mib(supernet, batch, subnets):
    """Most bytes alive at once while the gradients of `subnets` are accumulated, in MiB."""
    supernet.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for subnet in subnets:
            with supernet.activated(subnet):
                prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
            subnet_loss(prediction, batch, LossConfig(), teacher=None).total.backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak / 2**20


def random_batch(images, prompts, side):
    generator = torch.Generator().manual_seed(0)

    def pixels(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return Batch(
        images=pixels(images, 3, side, side),
        sizes=torch.full((images, 2), side),
        points=torch.rand(images, prompts, 2, 2, generator=generator) * side,
        labels=torch.tensor([1, -1]).expand(images, prompts, 2),
        masks=pixels(images, prompts, side // 4, side // 4),
        valid=torch.ones(images, prompts, dtype=torch.bool),
        sample_ids=torch.arange(images),
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--compare", nargs="+", metavar="CASE", help="on a GPU; see above")
    parser.add_argument("--json", type=Path, help="with --compare: write the rows here")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a limit is missed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
