"""The code of a run: copied into its folder, so that later edits do not change a queued job."""

from __future__ import annotations

import shutil
from pathlib import Path

import supersam
from supersam.config.files import CODE, COMMIT_FILE
from supersam.config.shipped import CONFIGS
from supersam.runs.provenance import git_commit


def snapshot_code(folder: Path) -> Path:
    """Copy this package to `folder`/code, which goes on PYTHONPATH. Returns that folder."""
    package = Path(supersam.__file__).parent
    code = folder / CODE
    if package.is_relative_to(code.absolute()):
        return code  # this is the copy already
    fresh = folder / ".code.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(package, fresh / "supersam", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONFIGS, fresh / "supersam" / CONFIGS.name, dirs_exist_ok=True)
    (fresh / COMMIT_FILE).write_text(git_commit() + "\n", encoding="utf-8")
    shutil.rmtree(code, ignore_errors=True)
    fresh.rename(code)
    return code
