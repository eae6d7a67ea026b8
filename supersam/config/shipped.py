"""The configurations that SuperSAM ships, found by name: `--config vit_b`.

The only file that knows where they lie, in a clone and in an installation.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from supersam.config.errors import UserError

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
"""Folder of the shipped configurations: in the package, where an installation puts it, or beside
it, in a clone."""
DEMO = CONFIGS / "train" / "demo.yaml"
"""What `supersam train` trains where nothing else is asked for."""


def shipped_configs() -> dict[str, Path]:
    """The files of the shipped configurations by name, such as `vit_b`; names are unique."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*/*.yaml"))}


def find_config(word: str) -> Path:
    """The file that `--config WORD` means: a path, or the name of a shipped configuration.

    Raises UserError that names the nearest configuration where there is no such file.
    """
    path, shipped = Path(word), shipped_configs()
    if path.is_file():
        return path
    is_name = len(path.parts) == 1 and not path.suffix
    if is_name and word in shipped:
        return shipped[word]
    close = difflib.get_close_matches(path.stem, list(shipped), n=1)
    remedy = f"did you mean --config {close[0]}?" if close else f"shipped are {', '.join(shipped)}"
    fault = "is not a shipped configuration" if is_name else "is not a file"
    raise UserError(f"--config {word} {fault}; {remedy}")
