"""Quantise the encoder of an export to eight bits, and say what that costs and gains.

By onnxruntime's static quantisation, of the products with weights alone.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from supersam.config import UserError
from supersam.data.dataset import ShardDataset
from supersam.data.shards import ShardReader
from supersam.design.calibration import draw_batches
from supersam.export.accuracy import Accuracy
from supersam.export.onnx_predictor import open_session
from supersam.export.plan import ExportPlan
from supersam.model import normalize_images
from supersam.runtime.atomic import write_json
from supersam.runtime.device import describe_device
from supersam.standalone import CONFIG, ENCODER_INT8_ONNX, ENCODER_ONNX

logger = logging.getLogger(__name__)

_ROUNDS = 5
"""Timed rounds of the encoders' comparison: neighbours are compared, so a few are enough."""
Choose = Callable[[Any], Sequence[Any]]
"""From the graph of an ONNX file to its nodes that are to be quantised."""


def quantize_export(plan: ExportPlan, sam: Sam, folder: Path) -> dict[str, Any]:
    """Write `encoder_int8.onnx` into `folder`, and measure it beside the others.

    sam: the exported model, on the CPU. Returns the number of quantised operators by type, the
    files' sizes, and the latencies.
    """
    operators = quantize_encoder(folder, _calibration_images(plan, sam))
    sizes = {name: (folder / name).stat().st_size for name in (ENCODER_ONNX, ENCODER_INT8_ONNX)}
    latency = compare_encoders(sam, folder)
    logger.info("eight bits: %s", json.dumps({**operators, **latency}))
    return {"operators": operators, "bytes": sizes, "latency": latency}


def describe_int8(plan: ExportPlan, encoder: dict[str, Any], accuracy: Accuracy) -> dict[str, Any]:
    """Return all that a card says of eight bits, as plain values; encoder: of `quantize_export`.

    Raises UserError where they lose more than the limit.
    """
    limit = plan.run.int8_max_loss
    lost = {prompt: -found.mean for prompt, found in accuracy.int8_less_fp32.items()}
    if max(lost.values()) > limit:
        words = ", ".join(f"{value:.4f} with a {prompt}" for prompt, value in lost.items())
        raise UserError(
            f"in eight bits the encoder loses {words} of its mIoU, more than --int8-max-loss "
            f"{limit:g}; nothing was written: allow more, try more images (--int8-images N), "
            "or export without --int8"
        )
    results = accuracy.int8.items()
    return {
        "settings": plan.int8_settings,
        **encoder,
        "miou": {prompt: result.miou for prompt, result in results},
        "miou_interval": {prompt: result.miou_interval for prompt, result in results},
        "less_fp32": {prompt: asdict(each) for prompt, each in accuracy.int8_less_fp32.items()},
    }


def note_in_config(folder: Path, int8: dict[str, Any]) -> None:
    """Say in the folder's `config.json` what the file in eight bits is, for tools that load it."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    said = {name: int8[name] for name in ("miou", "less_fp32", "latency")}
    write_json(folder / CONFIG, {**config, "int8": {"file": ENCODER_INT8_ONNX, **said}})


def products_with_weights(graph: Any) -> list[Any]:
    """Return the nodes of `graph` that multiply an activation by a stored matrix."""
    stored = {each.name for each in graph.initializer}
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in stored]


def quantize_encoder(
    folder: Path, images: Sequence[Tensor], *, choose: Choose = products_with_weights
) -> dict[str, int]:
    """Write `encoder_int8.onnx` beside the `encoder.onnx` of `folder`.

    Weights become signed numbers of 7 bits with a scale for each output channel, as the products of
    AVX2 overflow with 8; the inputs of their products become numbers of 8 bits, of the fixed ranges
    that `images` reach. Attention's own products, softmax, norms, positions and convolutions stay
    in float32.

    Args:
        folder: holds `encoder.onnx`.
        images: (1, 3, S, S) float32 each, normalised.
        choose: other operators to quantise instead, for comparisons.

    Returns the number of quantised operators by their type.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    file = str(folder / ENCODER_INT8_ONNX)
    whole = onnx.load(folder / ENCODER_ONNX)
    chosen = choose(whole.graph)
    with _quietly():
        quantize_static(
            str(folder / ENCODER_ONNX),
            file,
            _reader(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_quantize=[node.name for node in chosen],
            extra_options={"OpTypesToExcludeOutputQuantization": ["Conv", "MatMul"]},
        )
    quantized = onnx.load(file)
    properties = {each.key: each.value for each in whole.metadata_props}
    onnx.helper.set_model_props(quantized, {**properties, "precision": "int8"})
    quantized.graph.name = whole.graph.name
    onnx.save(quantized, file)
    onnx.checker.check_model(file)
    types = [node.op_type for node in chosen]
    return {each: types.count(each) for each in sorted(set(types))}


def _calibration_images(plan: ExportPlan, sam: Sam) -> list[Tensor]:
    """(1, 3, S, S) float32 each: images of the calibration shards as training saw them."""
    readers = [ShardReader(folder) for folder in plan.calibration]
    seed, side = plan.train_run.optim.seed, sam.image_encoder.img_size
    dataset = ShardDataset(readers, plan.train_run.data, side=side, seed=seed)
    return [
        normalize_images(batch.images, batch.sizes, mean=sam.pixel_mean, std=sam.pixel_std)
        for batch in draw_batches(dataset, images=plan.run.int8_images, batch=1)
    ]


def _reader(images: Sequence[Tensor]) -> Any:
    """Hand the images to the calibration one by one."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self._left: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._left, None)
            return None if image is None else {"images": image.numpy()}

    return Reader()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep out of the log what onnxruntime advises whoever calls it: users of an export do not."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(former)


def compare_encoders(sam: Sam, folder: Path) -> dict[str, Any]:
    """Time the encoder of one image on the CPU, in turn: PyTorch, and both ONNX files of `folder`.

    Returns medians in ms, and how many times eight bits are as fast as float32 in onnxruntime: the
    median of neighbours, and its range.
    """
    side = sam.image_encoder.img_size
    image = torch.zeros(1, 3, side, side)
    files = {"fp32": ENCODER_ONNX, "int8": ENCODER_INT8_ONNX}
    sides = {"pytorch": lambda: sam.image_encoder(image)}
    sides |= {name: _runs(folder / file, image) for name, file in files.items()}
    seconds = _time_in_turn(sides)
    ratios = [slow / fast for slow, fast in zip(seconds["fp32"], seconds["int8"], strict=True)]
    return {
        **{f"{name}_ms": 1e3 * statistics.median(each) for name, each in seconds.items()},
        "times_as_fast": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "repeats": _ROUNDS,
        "threads": torch.get_num_threads(),
        "device": describe_device(torch.device("cpu")),
    }


def _runs(file: Path, image: Tensor) -> Callable[[], object]:
    session, inputs = open_session(file), {"images": image.numpy()}
    return lambda: session.run(None, inputs)


@torch.no_grad()
def _time_in_turn(sides: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each call, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(_ROUNDS + 1):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            if round_ > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds
