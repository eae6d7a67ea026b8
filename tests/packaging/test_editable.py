"""An editable install imports the package from any folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.packaging.environments import copy_project, fresh_environment, pip_install

pytestmark = pytest.mark.slow


def test_a_script_beside_a_clone_imports_the_package(tmp_path: Path):
    """The clone is named like the package and holds a `data` folder, as README makes one."""
    clone = copy_project(tmp_path / "supersam")
    (clone / "data").mkdir()
    python = fresh_environment(tmp_path / "environment")
    pip_install(python, "--editable", str(clone))
    script = tmp_path / "beside.py"
    script.write_text("import supersam.data.sample as sample; print(sample.__file__)")
    for folder in (tmp_path, clone, tmp_path / "environment"):
        done = subprocess.run(
            [python, script], capture_output=True, text=True, cwd=folder, check=False
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == clone / "supersam" / "data" / "sample.py"
