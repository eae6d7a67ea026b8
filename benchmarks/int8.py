"""The image encoder in eight bits: speed of one image on this CPU, and what which operators cost.

python -m benchmarks.int8 speed [--models vit_t vit_b] [--rounds 7]
python -m benchmarks.int8 operators --run RUN --calibrate SHARDS --data SHARDS [--images 200]

speed: PyTorch, onnxruntime in float32, and in eight bits, in turn, with random weights. operators:
the largest subnet of a run, quantised more and less; mIoU less that in float32, object by object.
Prints a table and, last, one line of JSON. `pip install 'supersam[onnx]'`.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.in_turn import compare, print_record, time_in_turn
from supersam.config import ModelConfig
from supersam.data.dataset import ShardDataset
from supersam.data.shards import ShardReader
from supersam.design.calibration import draw_batches
from supersam.evaluation.evaluator import score_prompts
from supersam.evaluation.result import subtract
from supersam.export.int8 import products_with_weights, quantize_encoder
from supersam.export.onnx import write_onnx
from supersam.export.onnx_predictor import OnnxPredictor, open_session
from supersam.model import extract_subnet, load_sam, normalize_images
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights, read_run
from supersam.space import read_space, resolve_shape
from supersam.standalone import ENCODER_INT8_ONNX, ENCODER_ONNX


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        record = args.measure(args, Path(folder))
    print_record("int8", record)
    return 0


def measure_speed(args, folder):
    print(
        f"{'model':12}{'PyTorch ms':>12}{'float32 ms':>12}{'int8 ms':>12}{'ratio':>8}{'range':>16}"
    )
    return {name: speed_of(name, folder, args) for name in args.models}


def speed_of(name, folder, args):
    """Seconds of one image: the ratio is float32 by eight bits, both in onnxruntime."""
    shape = resolve_shape(ModelConfig(name=name, image_size=args.image_size))
    sam = load_sam(shape)
    write_onnx(sam, folder)
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, shape.image_size, shape.image_size, generator=random)
    quantize_encoder(folder, [image])
    sessions = {file: open_session(folder / file) for file in (ENCODER_ONNX, ENCODER_INT8_ONNX)}
    sides = {"pytorch": lambda: sam.image_encoder(image)}
    for file, session in sessions.items():
        sides[file] = lambda session=session: session.run(None, {"images": image.numpy()})
    seconds = time_in_turn(sides, args.rounds, clock=args.clock)
    row = compare(seconds[ENCODER_ONNX], seconds[ENCODER_INT8_ONNX])
    against = compare(seconds["pytorch"], seconds[ENCODER_INT8_ONNX])
    row |= {"pytorch_ms": against["slow_ms"], "ratio_to_pytorch": against["ratio"]}
    span = f"{row['min']:.2f} to {row['max']:.2f}"
    times = "".join(f"{row[key]:12.1f}" for key in ("pytorch_ms", "slow_ms", "fast_ms"))
    print(f"{name:12}{times}{row['ratio']:8.2f}{span:>16}", flush=True)
    return row


def measure_operators(args, folder):
    run, sam = load_run_model(args.run)
    write_onnx(sam, folder)
    images = calibration(run, sam, args)
    rows, predictors = {}, {"float32": OnnxPredictor(folder, ENCODER_ONNX)}
    for name in args.choices:
        place = folder / name.replace(" ", "_")
        place.mkdir()
        for file in folder.glob("*coder.onnx"):
            (place / file.name).symlink_to(file)
        operators = quantize_encoder(place, images, choose=CHOICES[name])
        rows[name] = {"operators": operators, **compare_files(place, images, args)}
        predictors[name] = OnnxPredictor(place, ENCODER_INT8_ONNX)
    scored = score_prompts(
        list(predictors.values()),
        [ShardReader(args.data)],
        ["point", "box"],
        side=sam.image_encoder.img_size,
        limit=args.images,
        workers=0,
        priors=None,
    )
    for prompt, (before, *after) in scored.items():
        print(f"float32, {prompt}: mIoU {before.miou:.4f} of {before.num_objects} objects")
        for name, result in zip(args.choices, after, strict=True):
            rows[name][prompt] = asdict(subtract(result, before)) | {"miou": result.miou}
    for name, row in rows.items():
        lost = ", ".join(f"{p} {row[p]['mean']:+.4f} {row[p]['interval']}" for p in scored)
        print(f"{name:26} {row['ratio']:.2f}x  embedding {row['error']:.4f}  {lost}")
    return rows


def load_run_model(folder):
    run = read_run(folder)
    space = read_space(folder / "space.yaml", resolve_shape(run.model))
    supernet = load_supernet(run, space, find_weights(run, "last"))
    return run, extract_subnet(supernet, space.largest())


def calibration(run, sam, args):
    readers, side = [ShardReader(args.calibrate)], sam.image_encoder.img_size
    dataset = ShardDataset(readers, run.data, side=side, seed=0)
    scale = {"mean": sam.pixel_mean, "std": sam.pixel_std}
    batches = draw_batches(dataset, images=args.calibration_images, batch=1)
    return [normalize_images(batch.images, batch.sizes, **scale) for batch in batches]


def compare_files(folder, images, args):
    """How many times eight bits are as fast as float32, and how far off.

    The error is a share of how much embeddings differ between images: what all have in common, a
    model that sees little has exactly.
    """
    whole, small = (open_session(folder / file) for file in (ENCODER_ONNX, ENCODER_INT8_ONNX))

    def run(session, image):
        return session.run(None, {"images": image.numpy()})[0]

    sides = {"slow": lambda: run(whole, images[0]), "fast": lambda: run(small, images[0])}
    seconds = time_in_turn(sides, args.rounds, clock=args.clock)
    expected, found = (np.stack([run(s, image) for image in images]) for s in (whole, small))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean(0))
    return compare(seconds["slow"], seconds["fast"]) | {"error": float(error)}


def of_types(*types):
    return lambda graph: [node for node in graph.node if node.op_type in types]


def with_convolutions(graph):
    return products_with_weights(graph) + of_types("Conv")(graph)


def all_that_onnxruntime_can(graph):
    from onnxruntime.quantization.registry import QDQRegistry

    return of_types(*QDQRegistry)(graph)


CHOICES = {
    "products with weights": products_with_weights,
    "and convolutions": with_convolutions,
    "all products": of_types("MatMul"),
    "norms": lambda graph: products_with_weights(graph) + of_types("LayerNormalization")(graph),
    "softmax": lambda graph: products_with_weights(graph) + of_types("Softmax")(graph),
    "sums": lambda graph: products_with_weights(graph) + of_types("Add")(graph),
    "all that onnxruntime can": all_that_onnxruntime_can,
}
"""What is quantised; norms, softmax and sums beside the products with weights."""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--rounds", type=int, default=7)
    shared.add_argument("--threads", type=int, default=1)
    shared.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser("speed", parents=[shared])
    speed.add_argument("--models", nargs="+", default=["vit_t", "vit_s"])
    speed.add_argument("--image-size", type=int)
    speed.set_defaults(measure=measure_speed)
    operators = commands.add_parser("operators", parents=[shared])
    operators.add_argument("--run", type=Path, required=True)
    operators.add_argument("--calibrate", type=Path, required=True)
    operators.add_argument("--calibration-images", type=int, default=32)
    operators.add_argument("--data", type=Path, required=True)
    operators.add_argument("--images", type=int, default=200)
    operators.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    operators.set_defaults(measure=measure_operators)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
