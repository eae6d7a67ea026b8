"""The mask decoder with segment-anything's operations against fused and folded ones, in turn.

python benchmarks/decoder.py [--grid 16] [--images 2] [--prompts 8] [--repeats 8] [--clock cpu]

Rows: forward and backward of all masks, forward alone, and the single mask alone, on a CPU in
float32. Prints ratios to segment-anything's operations, and one line of JSON.
"""

import argparse
import sys

import torch
from in_turn import CLOCKS, compare, print_ratios, print_record, time_in_turn

from supersam.model import load_sam
from supersam.model.decoder import decode_masks, decode_single_masks
from supersam.model.decoder_kernels import EXACT, FOLDED, FUSED
from supersam.runtime.memory import keep_freed_memory

KERNELS = {"exact": EXACT, "fused": FUSED, "folded": FOLDED}


def main():
    args = parse_args()
    torch.set_num_threads(1)
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


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=16, help="tokens along a side of the image")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
