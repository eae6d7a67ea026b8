"""The model card: what the subnet is, its accuracy, size and speed, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from supersam.config import dump_yaml
from supersam.evaluation.table import PRIOR_WORDS
from supersam.runtime.bootstrap import FEW_GROUPS
from supersam.space import SubnetCost, SubnetSpec
from supersam.standalone import ENCODER_INT8_ONNX, ENCODER_ONNX


@dataclass(frozen=True)
class Identity:
    """Two exports with equal identity hold the same weights."""

    run: str
    """Name of the training run."""
    weights: str
    """16 hex digits of the checkpoint's content; empty for the weights before training."""
    step: int
    """Optimizer steps of the checkpoint."""
    subnet: str
    """Key of the subnet."""
    finetune_steps: int
    """Steps that the subnet was trained alone afterwards."""
    finetune_lr: float | None
    """Peak learning rate of those; None without them."""


@dataclass(frozen=True)
class ModelCard:
    """Everything that is known about an exported subnet."""

    name: str
    identity: Identity
    license: str | None
    """Licence of the weights, where the user named one."""
    spec: SubnetSpec
    cost: SubnetCost
    space: Mapping[str, Any]
    """The search space that it was chosen from."""
    shape: Mapping[str, Any]
    """Sizes of the supernet's encoder."""
    start: str
    """Where the supernet's weights began, in words."""
    averaged: float | None
    """Decay of the moving average that the weights are; None where they are those of the step."""
    training_data: tuple[Mapping[str, str], ...]
    """Folder and fingerprint of each training set."""
    evaluation_data: tuple[str, ...]
    """Folders of the evaluation shards."""
    evaluation_images: int | None
    """Images evaluated on, spread evenly; None for all."""
    selected_on: tuple[str, ...] | None
    """Folders of the shards that a search selected the subnet on; None where no search did."""
    selection_images: int
    """Images of the evaluation data that the search saw."""
    seen_in_training: str | None
    """What training saw of the evaluation data; None where it saw nothing."""
    not_compared: str | None
    """Why it is unknown whether training saw the evaluation data; None where it is known."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Evaluation results by prompt; empty where there was no evaluation data."""
    less_largest: Mapping[str, Mapping[str, Any]]
    """By prompt the score less that of the supernet's largest subnet, object by object; empty where
    it was not measured."""
    max_difference_from_supernet: float
    """Largest difference of a mask logit from the supernet with this subnet active."""
    latency: Mapping[str, Any]
    """Of the exported model itself, on the device of the export."""
    onnx: Mapping[str, Any] | None
    """Parity of the ONNX files; None where there are none."""
    int8: Mapping[str, Any] | None
    """What the encoder in eight bits costs and gains; None where there is none."""
    versions: Mapping[str, str]
    """Of this software, its libraries, and its git commit."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "spec": self.spec.to_dict(),
            "cost": {
                **asdict(self.cost),
                "params_m": self.cost.params_m,
                "flops_g": self.cost.flops_g,
            },
        }


def card_text(card: ModelCard) -> str:
    """The card as Markdown with a YAML header, as model hubs read it."""
    parts = [f"---\n{dump_yaml(_header(card))}---", f"# {card.name}"]
    parts += [text for text in (_selection(card), _summary(card), _usage(card)) if text]
    parts += [_accuracy(card), _costs(card), *filter(None, [_int8(card)])]
    parts += [_provenance(card), _subnet(card)]
    return "\n\n".join(parts) + "\n"


def _header(card: ModelCard) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "mask-generation"},
            "dataset": {"name": ", ".join(card.evaluation_data), "type": "custom"},
            "metrics": [{"type": "mean_iou", "name": f"mIoU, {prompt}", "value": found["miou"]}],
        }
        for prompt, found in card.metrics.items()
    ]
    header: dict[str, Any] = {} if card.license is None else {"license": card.license}
    header |= {"library_name": "segment-anything", "pipeline_tag": "mask-generation"}
    header |= {"tags": ["segment-anything", "supersam", "neural-architecture-search"]}
    return header | {"model-index": [{"name": card.name, "results": results}]}


def _selection(card: ModelCard) -> str:
    """What the numbers below rest on, where a search selected the subnet."""
    if card.selected_on is None or not card.metrics:
        return ""
    selected, measured = _named(card.selected_on), _named(card.evaluation_data)
    if card.selection_images == 0:
        return f"Selected on {selected}, measured on {measured}, which the search never saw."
    return (
        f"**No final set: this subnet was selected on {selected} and measured on {measured}, of "
        f"which the search saw {card.selection_images} images. It will score less on new images.**"
    )


def _named(folders: Iterable[str]) -> str:
    return ", ".join(f"`{folder}`" for folder in folders)


def _summary(card: ModelCard) -> str:
    spec = card.spec
    return (
        f"A Segment Anything model with {card.cost.params_m:.2f} M parameters: a subnet of the "
        f"supernet `{card.identity.run}`, {len(spec.layers)} of {card.shape['depth']} encoder "
        f"layers, {spec.embed_dim} channels"
        + ("." if spec.resolution is None else f", for images of {spec.resolution} px.")
    )


def _usage(card: ModelCard) -> str:
    onnx = (
        "\n`encoder.onnx` takes `images`, (B, 3, S, S) float32 as `Sam.preprocess` gives them; "
        "`decoder.onnx` has the inputs and outputs of segment-anything's own `SamOnnxModel`, with "
        "four masks for each prompt, the single mask first."
    )
    return (
        "With torch, segment-anything and safetensors (`pip install torch torchvision safetensors "
        "segment-anything`); `python this/folder/load.py` checks the files.\n\n"
        "```python\nimport sys\n\nfrom segment_anything import SamPredictor\n\n"
        'sys.path.insert(0, "this/folder")\nfrom load import load_subnet  # of this folder\n\n'
        "predictor = SamPredictor(load_subnet())\n```" + ("\n" + onnx if card.onnx else "")
    )


def _accuracy(card: ModelCard) -> str:
    if not card.metrics:
        return "## Accuracy\n\nNot evaluated: the run has no held-out images, and none were named."
    head = ["prompt", "mIoU", "95 % interval", "without the image", "less largest"]
    rows = [head + ["best of 3 by its own estimate", "oracle of 3"]]
    rows.append(["---"] * len(rows[0]))
    for prompt, found in card.metrics.items():
        row = [prompt, _score(found["miou"]), _interval(found["miou_interval"], "")]
        row += [_score(found["prior_miou"]), _difference(card.less_largest.get(prompt))]
        rows.append(row + [_score(found[n]) for n in ("miou_predicted_best", "miou_oracle")])
    parts = ["## Accuracy", _table(rows), _what_was_measured(card), *_cautions(card)]
    return "\n\n".join(parts)


def _what_was_measured(card: ModelCard) -> str:
    some = next(iter(card.metrics.values()))
    cut = some["num_cut_objects"]
    return (
        f"{some['num_objects']} objects in {some['num_images']} images of "
        f"{some['num_groups']} clips, stacks or source images, from "
        f"{_named(card.evaluation_data)}, fixed prompts, original resolution"
        + (f"; {cut} objects that a tile's frame cuts are left out" if cut > 0 else "")
        + f". Filling each object's box alone scores {some['box_fill_miou']:.4f}. Without the "
        "image: what the best disc around a point, or the mean training mask in a box, scores. "
        "Less largest: the score less that of the supernet's largest subnet, object by object. "
        "Intervals resample clips, stacks and source images."
    )


def _cautions(card: ModelCard) -> list[str]:
    """What a reader of the numbers must know, a paragraph each."""
    said = []
    for prompt, found in card.metrics.items():
        if found["prior_miou"] is not None and found["miou"] < found["prior_miou"]:
            said.append(
                f"**With a {prompt} it scores less than {PRIOR_WORDS[prompt]} "
                f"({found['prior_miou']:.4f}), which never looks at the image.**"
            )
    groups = min(found["num_groups"] for found in card.metrics.values())
    if groups < FEW_GROUPS:
        said.append(
            f"The objects come from only {groups} clips, stacks or images: intervals are rough."
        )
    if card.seen_in_training is not None:
        said.append(
            f"**Training saw this evaluation data** ({card.seen_in_training}): the numbers say "
            "nothing about new images."
        )
    if card.not_compared is not None:
        said.append(f"Whether training saw this evaluation data is unknown: {card.not_compared}.")
    return said


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(interval: Sequence[float] | None, sign: str) -> str:
    return "-" if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    mean = round(found["mean"], 4) + 0.0  # no "-0.0000"
    return f"{mean:+.4f} ({_interval(found['interval'], '+')})"


def _costs(card: ModelCard) -> str:
    latency = card.latency
    rows = [["", ""], ["---", "---"]]
    rows += [["parameters", f"{card.cost.params:,} (image encoder {card.cost.encoder_params:,})"]]
    if card.spec.resolution is not None:
        rows += [["input", f"{card.spec.resolution} px; the supernet's {card.shape['image_size']}"]]
    rows += [["FLOPs", f"{card.cost.flops_g:.2f} G per image with one prompt"]]
    rows += [
        [
            "latency",
            f"{latency['median_ms']:.1f} ms median, quartiles {latency['iqr_ms']:.1f} ms apart, of "
            f"{latency['repeats']} runs after {latency['warmup']} to warm up; one image "
            f"with one prompt, PyTorch {latency['precision']}, {latency['device']}",
        ]
    ]
    if card.onnx is not None:
        rows += [
            [
                "ONNX",
                f"opset {card.onnx['opset']}; {card.onnx['masks']} masks of {card.onnx['images']} "
                f"images: smallest IoU with PyTorch's {card.onnx['min_mask_iou']:.6f}",
            ]
        ]
    return "## Cost\n\n" + _table(rows)


def _int8(card: ModelCard) -> str:
    """What `encoder_int8.onnx` loses and gains."""
    if card.int8 is None:
        return ""
    rows = [["prompt", "mIoU, float32", "mIoU, eight bits", "difference"], ["---"] * 4]
    for prompt, miou in card.int8["miou"].items():
        change = _difference(card.int8["less_fp32"][prompt])
        rows.append([prompt, _score(card.metrics[prompt]["miou"]), _score(miou), change])
    latency, sizes = card.int8["latency"], card.int8["bytes"]
    low, high = latency["range"]
    mib = [f"{sizes[name] / 2**20:.1f}" for name in (ENCODER_ONNX, ENCODER_INT8_ONNX)]
    return (
        f"## Eight bits\n\n{_table(rows)}\n\n`{ENCODER_INT8_ONNX}` takes the place of "
        f"`{ENCODER_ONNX}`: {mib[1]} instead of {mib[0]} MiB. Differences are object by object, "
        "with 95 % intervals. The encoder of one image, in turn on one CPU: PyTorch "
        f"{latency['pytorch_ms']:.1f} ms, onnxruntime {latency['fp32_ms']:.1f} ms, in eight bits "
        f"{latency['int8_ms']:.1f} ms: {latency['times_as_fast']:.2f} times as fast as float32 "
        f"({low:.2f} to {high:.2f}), {latency['device']}. Ranges of activations are those of "
        f"{card.int8['settings']['images']} images of "
        f"{_named(card.int8['settings']['data'])}."
    )


def _provenance(card: ModelCard) -> str:
    identity = card.identity
    weights = f"content {identity.weights}" if identity.weights else "before training"
    lines = [
        f"- supernet: run `{identity.run}`, step {identity.step}, {weights}",
        f"- its weights began as {card.start}",
        *(f"- trained on `{d['folder']}`, content {d['fingerprint']}" for d in card.training_data),
        f"- largest difference of a mask logit from the supernet: "
        f"{card.max_difference_from_supernet:g}",
        "- software: " + ", ".join(f"{name} {value}" for name, value in card.versions.items()),
        f"- licence of the weights: {card.license or 'not stated'}; the architecture is Segment "
        "Anything's (Apache-2.0)",
    ]
    if card.averaged is not None:
        lines.insert(1, f"- they are a moving average of the weights, decay {card.averaged:g}")
    if identity.finetune_steps > 0:
        text = f"- then trained alone for {identity.finetune_steps} steps, peak learning rate "
        lines.insert(-3, f"{text}{identity.finetune_lr:g}")
    return "## Provenance\n\n" + "\n".join(lines)


def _subnet(card: ModelCard) -> str:
    spec = card.spec
    rows = [["supernet layer", "MLP width", "heads"], ["---"] * 3]
    layers = zip(spec.layers, spec.mlp_widths, spec.heads, strict=True)
    rows += [[str(value) for value in layer] for layer in layers]
    return f"## Subnet `{card.identity.subnet}`\n\n" + _table(rows)


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
