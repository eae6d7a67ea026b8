"""Fresh environments that borrow this one's dependencies, so that nothing is downloaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy

from tests.paths import ROOT

_LEFT_OUT = {"build", "data", "designs", "exports", "runs", "tests"}
"""Top folders that a build must not need, or must not find."""


def copy_project(folder: Path) -> Path:
    """Copy what an installation is made of, without build products and tests."""
    shutil.copytree(ROOT, folder, ignore=_left_out)
    return folder


def _left_out(folder: str, names: list[str]) -> set[str]:
    hidden = {name for name in names if name.startswith((".", "__pycache__"))}
    built = {name for name in names if name.endswith(".egg-info")}
    return hidden | built | (_LEFT_OUT if Path(folder) == ROOT else set())


def fresh_environment(folder: Path) -> Path:
    """Make a virtual environment that sees this one's libraries but not this project."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    borrowed = folder / "lib" / version / "site-packages" / "borrowed.pth"
    borrowed.write_text(f"{Path(numpy.__file__).parents[1]}\n")
    return folder / "bin" / "python"


def pip_install(python: Path, *words: str) -> None:
    """Install into the environment of `python`, offline and without dependencies."""
    _run("pip", "--python", str(python), "install", *_OFFLINE, *words)


def build_sdist(project: Path, folder: Path) -> Path:
    """Build the source archive of `project` into `folder`."""
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


def build_wheel(source: Path, folder: Path) -> Path:
    """Build a wheel of a folder or a source archive into `folder`, as `pip wheel` does."""
    _run("pip", "wheel", *_OFFLINE, "--wheel-dir", str(folder), str(source))
    return next(folder.glob("*.whl"))


_OFFLINE = (
    "--quiet",
    "--no-deps",
    "--no-index",
    "--no-build-isolation",
    "--disable-pip-version-check",
)


def _run(*words: str) -> None:
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
