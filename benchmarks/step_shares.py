"""Where the time of a training step goes, and how near each part is to the processor's ceiling.

python -m benchmarks.step_shares [--model vit_t] [--images 4] [--prompts 8] [--rounds 5] [--bf16]

The largest subnet, one thread, this thread's CPU time. The ceiling is a product of two matrices of
2048 x 2048 in the same type. FLOPs are those of matrix products as `subnet_cost` counts them (what
a CPU folds in the decoder is not taken off), three times the forward pass.
"""

import argparse
import contextlib
import statistics
import time

import torch

from benchmarks.in_turn import print_record
from benchmarks.step_memory import random_batch
from supersam.config import LossConfig
from supersam.model import Prediction, SamSupernet, load_sam
from supersam.model.losses import subnet_loss
from supersam.runtime.memory import keep_freed_memory
from supersam.space import SHAPES, published_space, subnet_cost

CEILING = 2048


def main():
    args = parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    shape = SHAPES[args.model]
    supernet = SamSupernet(load_sam(shape), published_space(shape)).train()
    batch = random_batch(args.images, args.prompts, shape.image_size)
    rounds = [step_seconds(supernet, batch, bf16=args.bf16) for _ in range(args.rounds + 1)][1:]
    seconds = {part: statistics.median(r[part] for r in rounds) for part in rounds[0]}
    total = sum(seconds.values())
    for part, value in seconds.items():
        print(f"{part:18}{value * 1e3:9.1f} ms{value / total:7.1%}")
    cost = subnet_cost(supernet.space.largest(), shape)
    encoder = 3 * args.images * cost.encoder_flops
    decoder = 3 * args.images * args.prompts * cost.prompt_flops
    inside = sum(value for part, value in seconds.items() if part.startswith("encoder"))
    ceiling = ceiling_flops(torch.bfloat16 if args.bf16 else torch.float32)
    shares = {
        "encoder": encoder / inside / ceiling,
        "decoder and losses": decoder / (total - inside) / ceiling,
        "step": (encoder + decoder) / total / ceiling,
    }
    print(f"ceiling {ceiling / 1e9:.1f} GFLOP/s; of it:")
    for name, share in shares.items():
        print(f"{name:18}{share:7.1%}")
    results = {"seconds": seconds, "ceiling_gflops": ceiling / 1e9, "shares": shares}
    print_record("step_shares", {"model": args.model, **results})


def step_seconds(supernet, batch, *, bf16):
    """Seconds of each part of one step; the graph is cut between encoder, decoder and losses."""
    supernet.zero_grad(set_to_none=True)
    marks = [("", cpu_seconds())]

    def mark(part):
        marks.append((part, cpu_seconds()))

    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    with autocast:
        embedding = supernet.encode(batch.images, batch.sizes)
        mark("encoder forward")
        seen = embedding.detach().requires_grad_()
        masks, ious = supernet.decode(seen, batch.points, batch.labels)
        mark("decoder forward")
    leaves = [tensor.detach().requires_grad_() for tensor in (masks, ious)]
    prediction = Prediction(masks=leaves[0], ious=leaves[1], embedding=seen)
    loss = subnet_loss(prediction, batch, LossConfig(), teacher=None).total
    mark("losses forward")
    loss.backward()
    mark("losses backward")
    torch.autograd.backward([masks, ious], [leaf.grad for leaf in leaves])
    mark("decoder backward")
    embedding.backward(seen.grad)
    mark("encoder backward")
    return {part: t - before for (_, before), (part, t) in zip(marks, marks[1:], strict=False)}


def ceiling_flops(dtype, repeats=5):
    """FLOPs per second of a large matrix product on one thread."""
    a, b = (torch.randn(CEILING, CEILING).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        started = cpu_seconds()
        a @ b
        seconds.append(cpu_seconds() - started)
    return 2 * CEILING**3 / statistics.median(seconds[1:])


def cpu_seconds():
    return time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SHAPES), default="vit_t")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
