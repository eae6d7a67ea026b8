"""What one GPU makes of SuperSAM, in under ten minutes: measured beside predicted.

python -m benchmarks.gpu [--models vit_b vit_l vit_h] [--only PART ...] [--json FILE] [--gate]
python -m benchmarks.gpu --toy          the same at toy size, also without a GPU

ceilings    the device's own: a bf16 matmul of 8192^3 on random numbers, a copy of 4 GiB
encoder     largest and smallest subnet, forward and forward + backward: attention eager, sdpa,
            in_kernel, the last two compiled; images/s, share of the matmul ceiling, peak memory
sandwich    largest, smallest, two random, optimizer included: 8 prompts plain and compiled, 64
            compiled
widths      one MLP half of ViT-B over its widths, 1020 beside 1024
latency     one image through the largest and the smallest subnet
Predictions were computed before any measurement, from 790 TFLOP/s and 4.3 TB/s (an H200). Random
weights and images; CUDA events; medians of `--rounds`. Needs no ray, submitit or deepspeed. A part
that fails, for memory or a kernel that does not exist, says so in its row. With --gate, exits with
1 where a sandwich or the largest encoder misses its target.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.in_turn import print_record
from benchmarks.step_memory import random_batch
from supersam.config import LossConfig
from supersam.model import SamSupernet
from supersam.model.losses import subnet_loss
from supersam.model.sam import build_sam
from supersam.space import SHAPES, EncoderShape, published_space, subnet_cost

TOY = EncoderShape(96, 4, 3, (1, 3), image_size=80, window_size=3)
PREDICTED = {  # of an H200, forward + backward; encoder ms of the largest: sdpa, in_kernel
    "vit_b": {"sdpa_ms": 7.53, "in_kernel_ms": 6.56, "sandwich_images_per_s": 49},
    "vit_l": {"sdpa_ms": 18.8, "in_kernel_ms": 17.3, "sandwich_images_per_s": 20},
    "vit_h": {"sdpa_ms": 33.3, "in_kernel_ms": 31.8, "sandwich_images_per_s": 11.7},
}
SANDWICH_TARGETS = {"vit_b": 40, "vit_l": 17, "vit_h": 9.5}  # images/s, 8 prompts
SHARE_TARGETS = {"vit_b": 0.40, "vit_l": 0.48, "vit_h": 0.55}  # of the matmul ceiling
BATCHES = {"vit_b": 16, "vit_l": 8, "vit_h": 6}
VARIANTS = ("reference", "sdpa", "in_kernel", "sdpa compiled", "in_kernel compiled")
PARTS = ("ceilings", "encoder", "sandwich", "widths", "latency")


def main():
    args = parse_args()
    device = Device(args.toy)
    results = {"ceilings": ceilings(device, args)}
    if "widths" in args.only:
        results["widths"] = widths(device, args)
    for name in args.models:
        for part, measure in (("encoder", encoder), ("sandwich", sandwich), ("latency", latency)):
            if part in args.only:
                results.setdefault(part, {})[name] = measure(name, device, args, results)
    print_record("gpu", results)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))
    missed = [] if args.toy else list(misses(results))
    if args.gate and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return int(args.gate and bool(missed))


def encoder(name, device, args, results):
    """Rows of the image encoder: largest and smallest by each kind of attention."""
    rows = {}
    for variant in VARIANTS:
        supernet = build(name, device, args, attention=variant.split()[0])
        if variant.endswith(" compiled"):
            compile_pieces(supernet, args)
        for which in ("largest", "smallest"):
            row = encoder_row(supernet, which, device, args, results)
            predicted = PREDICTED.get(name, {}).get(f"{variant}_ms")
            row["predicted_ms_per_image"] = predicted if which == "largest" else None
            rows[f"{which}, {variant}"] = row
            print(f"encoder {name:8}{which + ', ' + variant:26}{show(row)}")
        del supernet
        device.fresh()
    return rows


def encoder_row(supernet, which, device, args, results):
    spec = getattr(supernet.space, which)()
    shape = supernet.space.shape
    images = 1 if args.toy else args.batch or BATCHES[args.now]
    pixels = torch.randn(images, 3, shape.image_size, shape.image_size, device=device.device)
    flops = subnet_cost(spec, shape).encoder_flops * images
    direction = torch.randn(images, 256, shape.grid, shape.grid, device=device.device)

    def forward():
        with torch.autocast(device.device.type, torch.bfloat16):
            return supernet.image_encoder(pixels, spec)

    def forward_without_graph():
        with torch.no_grad():
            forward()

    def forward_and_backward():
        (forward() * direction).sum().backward()
        supernet.zero_grad(set_to_none=True)

    def measured():
        device.fresh()
        forward_ms = device.median_ms(forward_without_graph, args.rounds)
        both_ms = device.median_ms(forward_and_backward, args.rounds)
        return {
            "images": images,
            "forward_images_per_s": images / forward_ms * 1e3,
            "images_per_s": images / both_ms * 1e3,
            "ms_per_image": both_ms / images,
            "share_of_ceiling": 3 * flops / both_ms / 1e9 / results["ceilings"]["tflops"],
            "peak_gib": device.peak_gib(),
        }

    return or_reason(measured)


def sandwich(name, device, args, results):
    """Whole steps of largest, smallest and two random subnets, optimizer included."""
    rows = {}
    few, many = (2, 4) if args.toy else (8, 64)
    supernet = build(name, device, args, attention=args.attention)
    optimizer = torch.optim.AdamW(
        supernet.parameters(), lr=1e-6, fused=True if device.is_gpu else None
    )
    rng = np.random.default_rng(0)
    space = supernet.space
    specs = [space.largest(), space.sample(rng), space.sample(rng), space.smallest()]
    for prompts, compiled in ((few, False), (few, True), (many, True)):
        if compiled:
            compile_pieces(supernet, args)
        images = 1 if args.toy else args.batch or BATCHES[args.now] // (1 if prompts == few else 4)
        batch = random_batch(images, prompts, space.shape.image_size).to(device.device)
        costs = [subnet_cost(spec, space.shape) for spec in specs]
        flops = sum(c.encoder_flops + prompts * c.prompt_flops for c in costs) * images

        def step(batch=batch):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.device.type, torch.bfloat16):
                prefix = supernet.begin(batch.images, batch.sizes, specs)
            for spec in specs:
                with (
                    supernet.activated(spec),
                    torch.autocast(device.device.type, torch.bfloat16),
                ):
                    prediction = supernet.forward_from(prefix, batch.points, batch.labels)
                subnet_loss(prediction, batch, LossConfig(), teacher=None).total.backward()
            prefix.loss().backward()
            optimizer.step()

        def measured(images=images, step=step, flops=flops):
            device.fresh()
            ms = device.median_ms(step, args.rounds)
            return {
                "images": images,
                "images_per_s": images / ms * 1e3,
                "ms_per_image": ms / images,
                "share_of_ceiling": 3 * flops / ms / 1e9 / results["ceilings"]["tflops"],
                "peak_gib": device.peak_gib(),
            }

        row = or_reason(measured)
        predicted = PREDICTED.get(name, {}).get("sandwich_images_per_s")
        row["predicted_images_per_s"] = predicted if prompts == few else None
        label = f"{prompts} prompts{', compiled' if compiled else ''}"
        rows[label] = row
        print(f"sandwich {name:8}{label:22}{show(row)}")
    return rows


def widths(device, args):
    """Ms of one MLP half of ViT-B, forward and backward, bf16; 1020 is no multiple of 8."""
    args.now = "vit_b"
    shape = TOY if args.toy else SHAPES["vit_b"]
    block = build("vit_b", device, args, attention="sdpa").image_encoder.blocks[0]
    rows = {}
    x = torch.randn(1 if args.toy else 8, shape.grid, shape.grid, shape.embed_dim)
    x = x.to(device.device)
    direction = torch.randn_like(x)
    for width in (96, 192) if args.toy else (768, 1020, 1024, 1536, 2304, 3072):

        def half(width=width):
            with torch.autocast(device.device.type, torch.bfloat16):
                y = block.feed(x, mlp_width=width)
            (y * direction).sum().backward()

        rows[width] = device.median_ms(half, args.rounds)
        print(f"widths vit_b {width:6}{rows[width]:10.3f} ms")
    return rows


def latency(name, device, args, results):
    """Ms of one image, as a user of the model waits for it."""
    supernet = build(name, device, args, attention=args.attention)
    side = supernet.space.shape.image_size
    pixels = torch.randn(1, 3, side, side, device=device.device)
    rows = {}
    for which in ("largest", "medium", "smallest"):
        spec = getattr(supernet.space, which)()

        def encode(spec=spec):
            with torch.no_grad(), torch.autocast(device.device.type, torch.bfloat16):
                supernet.image_encoder(pixels, spec)

        rows[which] = device.median_ms(encode, args.rounds)
        print(f"latency {name:8}{which:10}{rows[which]:10.2f} ms")
    return rows


def build(name, device, args, *, attention):
    """A supernet with the published space, made where it runs; random weights, none zero."""
    args.now = name
    shape = TOY if args.toy else SHAPES[name]
    torch.manual_seed(0)
    with device.device:
        supernet = SamSupernet(build_sam(shape), published_space(shape), attention=attention)
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return supernet.to(device.device)


def compile_pieces(supernet, args):
    backend = "eager" if args.toy else "inductor"
    supernet.prepare_training(checkpoint_activations=False, compiled=True, backend=backend)


def or_reason(measured):
    """The row, or why there is none: one kernel that fails must not hide the other numbers."""
    try:
        return measured()
    except (RuntimeError, NotImplementedError) as fault:
        return {"failed": f"{type(fault).__name__}: {str(fault).splitlines()[0][:200]}"}


def show(row):
    if "failed" in row:
        return row["failed"]
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:8.1f} GiB"
    share = f"{row['share_of_ceiling']:7.1%} of the ceiling"
    said = [f"{value} {name}" for name, value in row.items() if name.startswith("predicted")]
    predicted = "".join(f"  ({text})" for text in said if not text.startswith("None"))
    each = f"{row['images_per_s']:9.2f} images/s{row['ms_per_image']:9.2f} ms each"
    return each + share + peak + predicted


def misses(results):
    """The targets that were measured and not met."""
    for name, rows in results.get("sandwich", {}).items():
        best = max(r.get("images_per_s", 0) for n, r in rows.items() if n.startswith("8 "))
        if best < SANDWICH_TARGETS[name]:
            yield f"{name}: sandwich below {SANDWICH_TARGETS[name]} images/s"
    for name, rows in results.get("encoder", {}).items():
        best = max(r.get("share_of_ceiling", 0) for n, r in rows.items() if "largest" in n)
        if best < SHARE_TARGETS[name]:
            yield f"{name}: encoder below {SHARE_TARGETS[name]:.0%} of the ceiling"


class Device:
    """The device that is measured, and its clock."""

    def __init__(self, toy):
        self.is_gpu = torch.cuda.is_available()
        if not self.is_gpu and not toy:
            raise SystemExit("no GPU is visible; --toy runs every part at toy size on the CPU")
        self.device = torch.device("cuda" if self.is_gpu else "cpu")

    def median_ms(self, call, rounds):
        """Median of `rounds` calls after two unmeasured ones."""
        for _ in range(2):
            call()
        return statistics.median(self._ms(call) for _ in range(rounds))

    def _ms(self, call):
        if not self.is_gpu:
            started = time.perf_counter()
            call()
            return (time.perf_counter() - started) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def fresh(self):
        """Forget what was allocated, and its peak."""
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self):
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_gpu else None


def ceilings(device, args):
    """TFLOP/s of a large matmul and TB/s of a large copy (read and written bytes)."""
    n, bytes_ = (256, 2**20) if args.toy else (8192, 2**32)
    a, b = (torch.randn(n, n, device=device.device, dtype=torch.bfloat16) for _ in range(2))
    matmul_ms = device.median_ms(lambda: a @ b, args.rounds)
    source = torch.empty(bytes_, dtype=torch.uint8, device=device.device)
    target = torch.empty_like(source)
    copy_ms = device.median_ms(lambda: target.copy_(source), args.rounds)
    found = {"tflops": 2 * n**3 / matmul_ms / 1e9, "tb_per_s": 2 * bytes_ / copy_ms / 1e9}
    print(f"ceilings: {found['tflops']:.1f} TFLOP/s bf16, {found['tb_per_s']:.2f} TB/s")
    return found


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(SANDWICH_TARGETS))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, help="images at once; by the model without it")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--attention", choices=("auto", "sdpa", "in_kernel", "reference"), default="auto"
    )
    parser.add_argument("--json", type=Path, help="write the results there, too")
    parser.add_argument("--toy", "--quick", action="store_true", help="toy size, also on a CPU")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    args.models = args.models or (["vit_b"] if args.toy else list(SANDWICH_TARGETS))
    if args.toy:
        args.rounds = min(args.rounds, 2)
    return args


if __name__ == "__main__":
    sys.exit(main())
