"""Read an exported folder. Needs only torch, segment-anything and safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything.modeling import Sam

from supersam.runtime.atomic import file_sha256
from supersam.standalone import SamSizes, build_plain_sam

FORMAT = 1
MANIFEST = "MANIFEST.json"
"""SHA-256 of every other file; written last."""
CONFIG = "config.json"
"""The sizes of the model."""
WEIGHTS = "model.safetensors"
"""Its weights, under segment-anything's names."""
SPEC = "spec.json"
"""The subnet as a slice of its supernet, as launch scripts read it."""
CARD_JSON, CARD = "card.json", "README.md"
"""Where it comes from and how good it is, for machines and for people."""
ENCODER_ONNX, DECODER_ONNX = "encoder.onnx", "decoder.onnx"


def load_subnet(folder: Path | str, *, device: str = "cpu") -> Sam:
    """Load the exported model, a segment-anything `Sam` in evaluation mode.

    `SamPredictor` and `SamAutomaticMaskGenerator` accept it. Raises ValueError that names the file
    that is missing, changed, or of a newer format.
    """
    folder = Path(folder)
    _verify(folder, (CONFIG, WEIGHTS))
    config = _read_json(folder / CONFIG)
    try:
        sam = build_plain_sam(SamSizes.from_dict(config["sizes"]))
        sam.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, TypeError, RuntimeError, SafetensorError) as fault:
        raise ValueError(f"{folder} does not hold a subnet that can be built: {fault}") from fault
    return sam.to(device).requires_grad_(False).eval()


def read_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by the manifest. Raises ValueError if it is unreadable."""
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise ValueError(
            f"{folder / MANIFEST} has format {manifest.get('format')!r}; this software reads "
            f"{FORMAT}"
        )
    return dict(manifest["files"])


def _verify(folder: Path, names: tuple[str, ...]) -> None:
    files = read_files(folder)
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; copy the folder whole")
        if file_sha256(path) != files.get(name):
            raise ValueError(f"{path} is damaged: its content is not what was exported")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"{path} cannot be read, so this is not an exported subnet: {fault}"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object, so this is not an exported subnet")
    return values
