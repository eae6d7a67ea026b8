"""The mask decoder with segment-anything's operations against fused and folded ones, in turn.

python benchmarks/decoder.py [--grid 16] [--images 2] [--prompts 8] [--repeats 8] [--clock cpu]
python benchmarks/decoder.py --traffic [--grid 64] [--images 16] [--prompts 8]

Rows: forward and backward of all masks, forward alone, and the single mask alone, on a CPU in
float32. Prints ratios to segment-anything's operations, and one line of JSON. With --traffic
nothing is computed: the GB that the operations of a forward and backward pass read and write in
bfloat16 are added up, each on its own, as a GPU executes them that is not compiled for.
"""

import argparse
import math
import sys

import torch
from in_turn import CLOCKS, compare, print_ratios, print_record, time_in_turn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supersam.model import load_sam
from supersam.model.decoder import decode_masks, decode_single_masks
from supersam.model.kernels.decoder import EXACT, FOLDED, FUSED
from supersam.model.sam import build_sam
from supersam.runtime.memory import keep_freed_memory
from supersam.space import SHAPES

KERNELS = {"exact": EXACT, "fused": FUSED, "folded": FOLDED}


def main():
    args = parse_args()
    torch.set_num_threads(1)
    if args.traffic:
        gigabytes = {name: traffic(kernels, args) / 1e9 for name, kernels in KERNELS.items()}
        for name, each in gigabytes.items():
            print(f"{name:8}{each:8.1f} GB")
        print_record("decoder_traffic", gigabytes)
        return
    keep_freed_memory()
    seconds = time_in_turn(decodings(args), args.repeats, clock=args.clock)
    rows = {
        name: compare(seconds[f"{name.split(',')[0]}, exact"], each)
        for name, each in seconds.items()
        if not name.endswith("exact")
    }
    rows["single, folded"] = compare(seconds["infer, exact"], seconds["single, folded"])
    print_ratios(rows, ("exact", "other"))
    print_record("decoder", rows)


def decodings(args):
    sam = load_sam("vit_t")
    sam.prompt_encoder.image_embedding_size = (args.grid, args.grid)
    modules = sam.mask_decoder, sam.prompt_encoder
    embedding = torch.randn(args.images, 256, args.grid, args.grid, requires_grad=True)
    tokens = torch.randn(args.images, args.prompts, 2, 256, requires_grad=True)
    side = 4 * args.grid
    weights = torch.randn(args.images, args.prompts, 4, side, side)

    def train(kernels):
        masks, ious = decode_masks(*modules, embedding, tokens, kernels=kernels)
        ((masks * weights).sum() + ious.sum()).backward()

    @torch.no_grad()
    def infer(kernels, decode=decode_masks):
        decode(*modules, embedding, tokens, kernels=kernels)

    calls = {f"train, {name}": lambda k=kernels: train(k) for name, kernels in KERNELS.items()}
    calls |= {f"infer, {name}": lambda k=kernels: infer(k) for name, kernels in KERNELS.items()}
    for name, kernels in (("exact", EXACT), ("folded", FOLDED)):
        calls[f"single, {name}"] = lambda k=kernels: infer(k, decode_single_masks)
    return calls


def traffic(kernels, args):
    """Bytes that all operations of a forward and backward pass read and write in bfloat16."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Traffic() as counted:
        sam = build_sam(SHAPES["vit_t"])
        sam.prompt_encoder.image_embedding_size = (args.grid, args.grid)
        embedding = torch.empty(args.images, 256, args.grid, args.grid, requires_grad=True)
        tokens = torch.empty(args.images, args.prompts, 2, 256)
        counted.bytes = 0  # of the pass alone
        with torch.autocast("cpu", torch.bfloat16):
            masks, ious = decode_masks(
                sam.mask_decoder, sam.prompt_encoder, embedding, tokens, kernels=kernels
            )
        (masks.sum() + ious.sum()).backward()
    return counted.bytes


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of what operations are given and give; views cost nothing."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace == "aten":
            for value in tree_leaves((args, kwargs, result)):
                if isinstance(value, torch.Tensor):
                    sides = zip(value.shape, value.stride(), strict=True)
                    count = math.prod(size for size, stride in sides if stride)  # not repeated
                    self.bytes += count * value.element_size()
        return result


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=16, help="tokens along a side of the image")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--traffic", action="store_true")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
