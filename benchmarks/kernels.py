"""The model's own kernels: how attention is best cut up, and what the mask decoder's save.

python -m benchmarks.kernels attention [--shapes NAME ...] [--json FILE]     on a GPU
python -m benchmarks.kernels attention --compile-for 90 [80 ...] [--gate]    without one
python -m benchmarks.kernels decoder [--grid 16] [--images 2] [--prompts 8] [--repeats 8]
python -m benchmarks.kernels decoder --traffic [--grid 64] [--images 16]

attention, on a GPU: the ms of each kernel with the tiles in use beside the five best of all
candidates, then forward and forward + backward of in_kernel beside sdpa, with the memory each needs
on top. Without: registers, bytes spilled and shared memory of the kernels in use, as NVIDIA's
assembler counts them for compute capabilities such as 80 (A100) and 90 (H100, H200); with --gate,
exits with 1 where one spills or asks for more shared memory than a block may have.

decoder: segment-anything's operations against fused and folded ones, in turn: forward and backward
of all masks, forward alone, and the single mask alone, on a CPU in float32. With --traffic nothing
is computed: the GB that the operations of a forward and backward pass read and write in bfloat16
are added up, each on its own, as a GPU executes them that is not compiled for.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.in_turn import CLOCKS, compare, print_ratios, print_record, time_in_turn
from supersam.model import load_sam
from supersam.model.attention import KERNELS
from supersam.model.decoder import decode_masks, decode_single_masks
from supersam.model.kernels import attention as triton_kernels
from supersam.model.kernels import positions as triton_positions
from supersam.model.kernels.decoder import EXACT, FOLDED, FUSED
from supersam.model.kernels.launch import TILES, Tiles, constants, cut, term_cut, tiles_of
from supersam.model.kernels.shapes import pitch
from supersam.model.sam import build_sam
from supersam.runtime.memory import keep_freed_memory
from supersam.space import SHAPES as MODELS

DECODERS = {"exact": EXACT, "fused": FUSED, "folded": FOLDED}

GRID = 64
SHAPES = {  # side of a window, heads, channels of a head, images
    "global_64": (64, 12, 64, 8),  # ViT-B and L at 1024 pixels
    "global_80": (64, 16, 80, 4),  # ViT-H
    "window_64": (14, 12, 64, 8),
    "window_80": (14, 16, 80, 4),
}
FUNCTIONS = {
    "forward": triton_kernels.forward,
    "queries": triton_kernels.backward_queries,
    "keys": triton_kernels.backward_keys,
}
TERMS = {
    "terms": triton_positions.terms_forward,
    "terms_back": triton_positions.terms_backward,
}
PRODUCTS = {"forward": 2, "queries": 3, "keys": 4}
"""Matrix products of queries x keys x channels that a kernel makes."""
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Bytes a block may have: CUDA C++ Programming Guide, table of compute capabilities."""


def main():
    args = parse_args()
    return attention(args) if args.question == "attention" else decoder(args)


def attention(args):
    if args.compile_for:
        results = {f"sm_{arch}": compiled_for(arch, args) for arch in args.compile_for}
        faults = [fault for rows in results.values() for fault in rows["faults"]]
    else:
        if not torch.cuda.is_available():
            raise SystemExit("no GPU is visible; --compile-for 90 compiles without one")
        candidates_of = {
            (name, kernel): list(candidates(kernel, SHAPES[name][0]))
            for name, kernel in product(args.shapes, FUNCTIONS)
        }
        compiled = compile_all(candidates_of, args.workers)
        results, faults = {name: measure(name, compiled, args) for name in args.shapes}, []
    print_record("attention_tiles", results)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))
    if args.gate and faults:
        print("\n".join(faults), file=sys.stderr)
    return int(args.gate and bool(faults))


def candidates(kernel, side):
    """Tiles worth a try: first those in use."""
    if side > 32:
        rows, queries, warps, stages = (1,), (64, 128), (4, 8), (2, 3, 4)
    else:
        rows, queries, warps, stages = (2, 4, 8, 16), (32, 64, 128), (4, 8), (2, 3)
    if kernel == "keys" and side > 32:
        rows, queries, stages = (1, 2), (32, 64, 128), (1, 2, 3)
    in_use = tiles_of(kernel, side, torch.cuda.get_device_capability()[0])
    yield in_use
    for choice in product(rows, queries, warps, stages):
        if Tiles(*choice) != in_use:
            yield Tiles(*choice)


def compiled_for(arch, args):
    """What the assembler says of each kernel in use, by shape and kernel."""
    found = {"faults": []}
    for name, kernel in product(args.shapes, [*FUNCTIONS, *TERMS]):
        side, _, dim, _ = SHAPES[name]
        if kernel in TERMS:
            cuts = term_cut(kernel, arch // 10)
        else:
            cuts = cut(tiles_of(kernel, side, arch // 10))
        row = resources((FUNCTIONS | TERMS)[kernel], cuts, side, dim, arch)
        found[f"{name}, {kernel}"] = row
        print(
            f"sm_{arch} {name:10} {kernel:10} {row['registers']:4} registers"
            f"{row['spilled']:6} bytes spilled{row['shared'] / 1024:7.0f} KiB shared"
        )
        if row["spilled"] > 0 or row["shared"] > SHARED_LIMIT.get(arch, 2**30):
            found["faults"].append(f"sm_{arch}, {name}, {kernel}: {row}")
    return found


def resources(function, cuts, side, dim, arch):
    """Registers of a thread, its bytes of local memory, and bytes of shared memory of a block."""
    made = constants(GRID, side, dim, torch.bfloat16) | cuts
    options = {name: made.pop(name) for name in ("num_warps", "num_stages")}
    plain = dict.fromkeys(("heads", "items"), "i32")
    plain |= dict.fromkeys(("lse", "delta", "d_padding", "d_rel"), "*fp32")
    types = {n: "constexpr" if n in made else plain.get(n, "*bf16") for n in function.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(types.values())
        if kind.startswith("*")
    }
    source = ASTSource(fn=function, signature=types, constexprs=made, attrs=aligned)
    kernel_code = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel_code.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    counts = dict(
        word.split(":") for word in told.split() if word.count(":") == 1 and word[-1] != ":"
    )
    return {
        "registers": int(counts["REG"]),
        "spilled": int(counts["STACK"]) + int(counts["LOCAL"]),
        "shared": kernel_code.metadata.shared,
    }


def compile_all(candidates_of, workers):
    """All candidates, side by side, into Triton's cache: by shape and kernel, each one's fault."""
    jobs = [(*key, tiles) for key, tried in candidates_of.items() for tiles in tried]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        faults = pool.map(fault_of, jobs)
        found = {key: {} for key in candidates_of}
        for (name, kernel, tiles), fault in zip(jobs, faults, strict=True):
            found[name, kernel][tiles] = fault
    return found


def measure(name, compiled, args):
    """Ms of all candidates of each kernel, then in_kernel beside sdpa."""
    side, heads, dim, batch = SHAPES[name]
    result = {}
    for kernel in FUNCTIONS:
        tried = compiled[name, kernel]
        call = prepare(name, kernel, batch)
        rows = sorted(
            (median_ms(partial(call, tiles), args.rounds), str(tiles), tiles)
            for tiles, fault in tried.items()
            if fault is None
        )
        work = 2 * PRODUCTS[kernel] * GRID**2 * side**2 * dim * heads * batch
        in_use = next(iter(tried))
        result[kernel] = {
            "in_use_ms": next((ms for ms, _, tiles in rows if tiles == in_use), None),
            "tflops_of_best": work / rows[0][0] / 1e9,
            "best": [{"ms": ms, "tiles": vars(tiles)} for ms, _, tiles in rows[:5]],
            "failed": {str(tiles): fault for tiles, fault in tried.items() if fault is not None},
        }
        used, tflops = result[kernel]["in_use_ms"], result[kernel]["tflops_of_best"]
        print(f"{name} {kernel}: in use {used} ms; the best reaches {tflops:.0f} TFLOP/s")
        for ms, text, _ in rows[:5]:
            print(f"    {ms:8.3f} ms  {text}")
        kind = "global" if side > 32 else "window"
        for gpu in ("hopper", "ampere"):
            TILES[kind, gpu][kernel] = rows[0][2]
    result["with best"] = {k: beside(name, k, args.rounds) for k in ("in_kernel", "sdpa")}
    return result


def fault_of(job):
    """Compile and run one job on one image; what went wrong, or None."""
    name, kernel, tiles = job
    try:
        prepare(name, kernel, 1)(tiles)
        torch.cuda.synchronize()
    except Exception as fault:  # noqa: BLE001 - any fault of a candidate rules out that one alone
        return f"{type(fault).__name__}: {str(fault)[:200]}"
    return None


def prepare(name, kernel, batch):
    """A call of a kernel on random numbers, for given tiles."""
    side, heads, dim, _ = SHAPES[name]
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    windows = (-(-GRID // side)) ** 2 * batch
    qkv, mixed = random(batch, GRID, GRID, heads, 3, dim), random(batch, GRID, GRID, heads, dim)
    padding, terms = random(heads, 3, dim), random(batch, GRID, GRID, heads, 2, pitch(side))
    lse = torch.full((batch, heads, GRID * GRID), 12.0, device="cuda")
    d_qkv, d_terms, out, numbers = (torch.empty_like(t) for t in (qkv, terms, mixed, lse))
    d_padding = lse.new_empty(windows * heads * side, 2, dim)
    arguments = {
        "forward": (qkv, padding, terms, out, numbers),
        "queries": (qkv, padding, terms, mixed, mixed, lse, numbers, d_qkv, d_terms),
        "keys": (qkv, padding, terms, mixed, lse, lse, d_qkv, d_padding),
    }[kernel]

    def call(tiles):
        parts = -(-side // tiles.rows) if kernel == "keys" else -(-(side**2) // tiles.queries)
        made = constants(GRID, side, dim, torch.bfloat16) | cut(tiles)
        FUNCTIONS[kernel][(parts * windows * heads,)](*arguments, heads, **made)

    return call


def beside(name, kernel, rounds):
    """Ms forward, and with backward, and GiB on top of the inputs."""
    side, heads, dim, batch = SHAPES[name]
    qkv = torch.randn(batch, GRID, GRID, heads, 3, dim, device="cuda", dtype=torch.bfloat16)
    inputs = [qkv, torch.randn(heads, 3, dim, device="cuda")]
    inputs += [torch.randn(2 * side - 1, dim, device="cuda") for _ in range(2)]
    leaves = [t.requires_grad_() for t in inputs]

    def run():
        with torch.autocast("cuda", torch.bfloat16):
            return KERNELS[kernel](*leaves)

    def both():
        torch.autograd.grad(run().sum(), leaves)

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        forward_ms = median_ms(run, rounds)
    both_ms = median_ms(both, rounds)
    gib = (torch.cuda.max_memory_allocated() - before) / 2**30
    print(f"{name} {kernel}: {forward_ms:.3f} ms, {both_ms:.3f} ms with backward, {gib:.2f} GiB")
    return {"forward_ms": forward_ms, "both_ms": both_ms, "gib": gib}


def median_ms(call, rounds):
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def decoder(args):
    torch.set_num_threads(1)
    if args.traffic:
        gigabytes = {name: traffic(kernels, args) / 1e9 for name, kernels in DECODERS.items()}
        for name, each in gigabytes.items():
            print(f"{name:8}{each:8.1f} GB")
        print_record("decoder_traffic", gigabytes)
        return 0
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
    return 0


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

    calls = {f"train, {name}": lambda k=kernels: train(k) for name, kernels in DECODERS.items()}
    calls |= {f"infer, {name}": lambda k=kernels: infer(k) for name, kernels in DECODERS.items()}
    for name, kernels in (("exact", EXACT), ("folded", FOLDED)):
        calls[f"single, {name}"] = lambda k=kernels: infer(k, decode_single_masks)
    return calls


def traffic(kernels, args):
    """Bytes that all operations of a forward and backward pass read and write in bfloat16."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Traffic() as counted:
        sam = build_sam(MODELS["vit_t"])
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
    questions = parser.add_subparsers(dest="question", required=True)
    tiles = questions.add_parser("attention")
    tiles.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    tiles.add_argument("--compile-for", nargs="+", type=int, metavar="CAPABILITY")
    tiles.add_argument("--rounds", type=int, default=12)
    tiles.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    tiles.add_argument("--json", type=Path, help="write the results there, too")
    tiles.add_argument("--gate", action="store_true", help="exit with 1 where a kernel spills")
    masks = questions.add_parser("decoder")
    masks.add_argument("--grid", type=int, default=16, help="tokens along a side of the image")
    masks.add_argument("--images", type=int, default=2)
    masks.add_argument("--prompts", type=int, default=8)
    masks.add_argument("--repeats", type=int, default=8)
    masks.add_argument("--traffic", action="store_true")
    masks.add_argument("--clock", choices=CLOCKS, default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
