"""Package metadata and dependencies, declared here and nowhere else."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "supersam/__init__.py").read_text(), re.MULTILINE
)
assert VERSION is not None  # supersam/__init__.py holds the version number

SEARCH = ["optuna>=4.0", "opentuner>=0.8.8"]  # the searchers of those names
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]  # launch/export.py --onnx


class BuildWithConfigs(build_py):
    """Puts `configs/` into the built package; the project itself keeps one copy, at its top."""

    def run(self) -> None:
        """Build; an editable install reads the project's own folder."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "supersam" / "configs"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / "configs", target)


setup(
    name="supersam",
    version=VERSION.group(1),
    description="Segment Anything as a weight-sharing supernet: train, search and export subnets",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The SuperSAM maintainers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="segment-anything supernet neural-architecture-search pruning deepspeed slurm ray",
    url="https://arxiv.org/abs/2501.08504",
    project_urls={
        "Paper": "https://arxiv.org/abs/2501.08504",
        "Segment Anything": "https://github.com/facebookresearch/segment-anything",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    cmdclass={"build_py": BuildWithConfigs},
    # With it an editable install is a line in a .pth file. Without it setuptools installs a finder,
    # which Python asks too late: a clone beside a script would be taken for the package.
    package_dir={"": "."},
    packages=find_packages(include=["supersam", "supersam.*"]),
    package_data={
        "supersam": ["py.typed"],
        "supersam.search.report": ["page.html", "page.js", "subnet.svg"],
    },
    entry_points={"console_scripts": ["supersam = supersam.cli:main"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "segment-anything>=1.0",
        "deepspeed>=0.19.8",  # managed_gradient_accumulation
        "submitit>=1.5",
        "ray[tune]>=2.40",
        "h5py>=3.11",
        "isal>=1.7",  # zlib's crc32, six to nine times as fast
        "numpy>=1.26",
        "pycocotools>=2.0.8",
        "Pillow>=10.3",
        "tifffile>=2024.2.12",
        "safetensors>=0.4.5",
        "scipy>=1.11",
        "tensorboard>=2.17",
        "matplotlib>=3.8",
        "jinja2>=3.1",  # the report of a search
        "psutil>=5.9",
        "pydantic>=2.8",
        "pyyaml>=6.0",
        "tyro>=1.0.17",
        "tqdm>=4.66",
    ],
    extras_require={
        "search": SEARCH,
        "onnx": ONNX,
        "dev": [
            *SEARCH,
            *ONNX,
            "import-linter>=2.1",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",
            "mypy>=1.13",
            "pytest>=8.2",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "setuptools>=68",  # the tests build and install the package
            "types-PyYAML",
            "types-tqdm",
        ],
    },
)
