"""What is built holds all that is needed: installed elsewhere, it trains the demo."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from supersam import __version__
from supersam.config.shipped import shipped_configs
from tests.packaging.environments import (
    build_sdist,
    build_wheel,
    copy_project,
    fresh_environment,
    pip_install,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    return build_sdist(copy_project(folder / "project"), folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sdist: Path) -> Path:
    """Built from the source archive: so that archive is whole too."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The folder of the commands of an environment that has the wheel."""
    python = fresh_environment(tmp_path_factory.mktemp("installed") / "environment")
    pip_install(python, str(wheel))
    return python.parent


def run_installed(folder: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [folder / "supersam", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_source_archive_holds_what_a_clone_does(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("LICENSE", "CITATION.cff", "launch/train.py", "configs/train/demo.yaml"):
        assert needed in names
    assert {"slurm/train.sbatch", "slurm/devcluster/devcluster", "CHANGELOG.md"} <= names


def test_the_wheel_holds_the_package_its_configurations_and_the_licence_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"supersam-{__version__}.dist-info/"
    assert {f"supersam/configs/train/{name}.yaml" for name in ("demo", "vit_b")} <= names
    assert f"{info}licenses/LICENSE" in names or f"{info}LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"supersam", info.rstrip("/")}


def test_shipped_configurations_are_found_by_name_from_any_folder(installed, tmp_path):
    done = run_installed(installed, tmp_path, "config")
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in shipped_configs())
    assert str(installed.parent) in done.stdout.splitlines()[0]
    shown = run_installed(installed, tmp_path, "config", "vit_b")
    assert shown.stdout == shipped_configs()["vit_b"].read_text()


def test_the_demo_trains_outside_of_the_repository(installed, tmp_path):
    words = ("--optim.steps", "2", "--optim.global-batch", "2", "--engine.threads", "1")
    done = run_installed(installed, tmp_path, "train", "--run", "mine", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "checkpoints" / "step-000002").is_dir()
    shown = run_installed(installed, tmp_path, "status", "mine", "--json")
    assert '"step": 2' in shown.stdout, shown.stderr
