"""Fresh environments that borrow this one's dependencies, so that nothing is downloaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy

from tests.paths import ROOT

NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs", "tests")


def copy_project(folder: Path) -> Path:
    """Copy what an installation is made of, without build products and tests."""
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    return folder


def fresh_environment(folder: Path) -> Path:
    """Make a virtual environment that sees this one's libraries but not this project."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    borrowed = folder / "lib" / version / "site-packages" / "borrowed.pth"
    borrowed.write_text(f"{Path(numpy.__file__).parents[1]}\n")
    return folder / "bin" / "python"


def pip_install(python: Path, *words: str) -> None:
    """Install into the environment of `python`, offline and without dependencies."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run([*command, *offline, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
