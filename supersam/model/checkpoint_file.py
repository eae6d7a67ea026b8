"""Files of SAM weights, of whatever origin: read without running code, under one set of names."""

from __future__ import annotations

import logging
import mmap
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isal import isal_zlib
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from supersam.config import UserError
from supersam.config.errors import describe_missing
from supersam.runtime.foreign import foreign_content, read_head

logger = logging.getLogger(__name__)

# What PyTorch's reader raises for bytes that are not a checkpoint, seen with random ones.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(struct.error, zipfile.BadZipFile),
)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEEPEST = 3
"""Dictionaries within each other that are searched for the weights."""
_FEW = 8
_ZIP_HEADER_BYTES, _ZIP_LENGTHS_AT = 30, 26
"""Before each entry: its header, and where that states the lengths of a name and of extras."""
_ROUNDED = 2**-8
"""Of numbers kept in bfloat16."""
_WRAPPERS = ("model", "state_dict", "model_state_dict", "sam", "net")
"""Where training scripts keep the weights, beside their optimizer and epoch."""
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""In PyTorch's message: the class or function that a file would have run."""
_ANCHOR = re.compile(r"(?P<prefix>.*?)(?:image|vision)_encoder\.pos_embed")
_PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
"""Buffers that segment-anything does not save: every SAM normalises images by these."""

_MLP_HEADS = r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)"
_HUGGING_FACE = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^vision_encoder\.", "image_encoder."),
        (r"^image_encoder\.layers\.", "image_encoder.blocks."),
        (r"^(image_encoder\.patch_embed)\.projection\.", r"\1.proj."),
        (r"^(image_encoder\.neck)\.conv1\.", r"\1.0."),
        (r"^(image_encoder\.neck)\.layer_norm1\.", r"\1.1."),
        (r"^(image_encoder\.neck)\.conv2\.", r"\1.2."),
        (r"^(image_encoder\.neck)\.layer_norm2\.", r"\1.3."),
        (r"^(?:prompt_encoder\.shared_embedding|shared_image_embedding)\.positional_embedding$",
         "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
        (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
        (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
        (r"\.layer_norm(\d)\.", r".norm\1."),
    )
)  # fmt: skip
"""transformers' SamModel names and segment-anything's, in the order in which they are replaced."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file under segment-anything's names; runs no code in it.

    Takes the weights out of a training script's checkpoint, strips prefixes such as `module.`, and
    translates the names of Hugging Face's SamModel; the log tells of it. Raises UserError where the
    file is absent, damaged, holds something else, or holds NaN or infinity.
    """
    state = _unwrap(_read_values(path), path)
    state = _without_prefix(state, path)
    state = _without_pixels(_from_hugging_face(state, path), path)
    _require_finite(state, path)
    return state


def _read_values(path: Path) -> Any:
    head = _read_head(path)
    if (kind := _other_kind(head, path)) is not None:
        raise UserError(f"checkpoint {path} is {kind}")
    try:
        if _is_safetensors(head, path):
            return load_file(path)
        if head.startswith(b"PK"):
            _require_unchanged(path)
        with warnings.catch_warnings():  # of what it refuses then
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, SafetensorError) as fault:
        raise UserError(
            f"checkpoint {path} cannot be read ({_first_sentence(fault)}); it is damaged or cut "
            f"short ({path.stat().st_size:,} bytes): fetch it again and compare its checksum"
        ) from None
    except pickle.UnpicklingError as fault:
        found = _REFUSED.search(str(fault))
        if found is None:
            raise UserError(
                f"checkpoint {path} is not a file of weights; torch.save and safetensors write them"
            ) from None
        raise UserError(
            f"checkpoint {path} is not a plain file of tensors: it holds {found[1]}, and a file "
            "that needs code to be read is refused; save its state_dict() alone with torch.save"
        ) from None


def _require_unchanged(path: Path) -> None:
    """Compare the checksums in an archive of torch.save, which PyTorch's reader does not.

    Under a second for the 2.5 GB of ViT-H. Raises UserError that names a damaged entry.
    """
    with (
        zipfile.ZipFile(path) as archive,
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        for entry in archive.infolist():
            # PyTorch compresses nothing, and writes 0 where it was told to compute no checksum
            if entry.CRC == 0 or entry.compress_type != zipfile.ZIP_STORED:
                continue
            lengths = struct.unpack_from("<HH", content, entry.header_offset + _ZIP_LENGTHS_AT)
            start = entry.header_offset + _ZIP_HEADER_BYTES + sum(lengths)
            with content[start : start + entry.file_size] as stored:
                is_damaged = isal_zlib.crc32(stored) != entry.CRC
            if is_damaged:
                raise UserError(
                    f"checkpoint {path} is damaged: its entry {entry.filename} is not what was "
                    "saved (CRC-32); fetch it again and compare its checksum"
                )


def _read_head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UserError(f"checkpoint {path} is a folder; name the file of weights in it")
        return read_head(path)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} {describe_missing(path)}") from None
    except OSError as fault:
        raise UserError(f"checkpoint {path} cannot be opened: {fault.strerror}") from None


def _other_kind(head: bytes, path: Path) -> str | None:
    """What a file is at first sight, and the remedy, where it is not one of weights."""
    # PyTorch writes ZIP archives: one that is cut short is told by its reader.
    if not head.startswith(b"PK") and (kind := foreign_content(head)) is not None:
        return kind
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return "a TorchScript program; save its state_dict() with torch.save"
        if not any(name.endswith("/data.pkl") for name in names):
            return f"a ZIP archive of {_few(names)}; unpack it with unzip"
    return None


def _is_safetensors(head: bytes, path: Path) -> bool:
    """By content, whatever the name: the length of a JSON header, and the header."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return int.from_bytes(head[:8], "little") < path.stat().st_size


def _unwrap(values: Any, path: Path) -> dict[str, Tensor]:
    """The dictionary of tensors that `values` is or holds."""
    if _is_state(values):
        return dict(values)
    for name, inner in _candidates(values):
        if _is_state(inner) and any(_ANCHOR.fullmatch(key) for key in inner):
            logger.info("%s: the weights are taken from its entry %r", path, name)
            return dict(inner)
    entries = _few(map(str, values)) if isinstance(values, dict) else ""
    found = f", and none of its entries ({entries}) holds the weights of a SAM" if entries else ""
    raise UserError(
        f"checkpoint {path} is not a dictionary of tensors as in sam_vit_b_01ec64.pth{found}; save "
        "a model's state_dict() alone with torch.save"
    )


def _candidates(values: Any, within: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Entries that may hold the weights: the usual names first, then what lies in any of them."""
    if not isinstance(values, dict) or _is_state(values) or depth > _DEEPEST:
        return
    usual = [name for name in _WRAPPERS if name in values]
    names = (*usual, *(key for key in values if key not in usual))
    yield from ((f"{within}{name}", values[name]) for name in names)
    for name in names:
        yield from _candidates(values[name], f"{within}{name}.", depth + 1)


def _is_state(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and len(values) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in values.items())
    )


def _without_prefix(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state without what stands before `image_encoder.` in every name, as `module.`."""
    prefixes = [match["prefix"] for key in state if (match := _ANCHOR.fullmatch(key))]
    if len(prefixes) != 1 or prefixes[0] == "":
        return state
    kept = {k.removeprefix(prefixes[0]): v for k, v in state.items() if k.startswith(prefixes[0])}
    left = (
        f", and {len(state) - len(kept)} other tensors left out" if len(kept) < len(state) else ""
    )
    logger.info("%s: the prefix %r of its names is dropped%s", path, prefixes[0], left)
    return kept


def _from_hugging_face(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state with transformers' names of a SamModel replaced by segment-anything's."""
    if not any(name.startswith("vision_encoder.") for name in state):
        return state
    logger.info("%s: its names are those of Hugging Face's SamModel, and are translated", path)
    counts_from_input = any(".proj_in." in name for name in state)
    return {_translated(name, shift=counts_from_input): value for name, value in state.items()}


def _translated(name: str, *, shift: bool) -> str:
    for pattern, replacement in _HUGGING_FACE:
        name = pattern.sub(replacement, name)
    if shift:  # their first and last layers have names, ours have numbers
        name = re.sub(rf"{_MLP_HEADS}\.layers\.0\.", r"\1.layers.1.", name)
        name = re.sub(rf"{_MLP_HEADS}\.proj_in\.", r"\1.layers.0.", name)
        name = re.sub(rf"{_MLP_HEADS}\.proj_out\.", r"\1.layers.2.", name)
    return name


def _without_pixels(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state without the constants of normalisation; the log tells where they are others."""
    for name, usual in _PIXELS.items():
        if name not in state:
            continue
        found = [round(value, 3) for value in state[name].double().flatten().tolist()]
        if len(found) != len(usual) or not np.allclose(found, usual, rtol=_ROUNDED):
            logger.warning(
                "%s: it was trained with %s %s; images are normalised with %s",
                *(path, name, found, list(usual)),
            )
    return {name: value for name, value in state.items() if name not in _PIXELS}


def _require_finite(state: dict[str, Tensor], path: Path) -> None:
    for name, value in state.items():
        if value.dtype not in _FLOATS or value.layout is not torch.strided or value.is_meta:
            kind = "without values" if value.is_meta else str(value.dtype).removeprefix("torch.")
            kind = kind if value.layout is torch.strided else "sparse"
            raise UserError(
                f"checkpoint {path}: {name} is {kind}, where floating point of 16 to 64 bits is "
                "needed; a quantised or pruned model cannot be taken"
            )
        bad = int((~value.isfinite()).sum())
        if bad > 0:
            raise UserError(
                f"checkpoint {path}: {bad} of {value.numel():,} values of {name} are NaN or "
                "infinity; its training had diverged: take an earlier one"
            )


def _first_sentence(fault: Exception) -> str:
    text = str(fault).strip() or type(fault).__name__
    return re.split(r"\. |\.?\n", text)[0][:160]


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_FEW]) + (" and others" if len(listed) > _FEW else "")
