"""Commands start without torch's compiler, which is there for whoever compiles."""

import os
import subprocess
import sys

IN_FRESH_PROCESS = """
import sys
from multiprocessing import Process
import importlib, torch  # once for all: each module is imported in a fork of this process

def check(name):
    importlib.import_module(name)
    sys.exit(int("torchvision" not in sys.modules or "torch._dynamo" in sys.modules))

for name in sys.argv[1:]:
    process = Process(target=check, args=(name,))
    process.start()
    process.join()
    print(name, process.exitcode)
"""
MODULES = [
    "supersam.model",
    "supersam.evaluation.predictor",
    "supersam.export",
    "supersam.export.command",
    "supersam.design.session",
    "supersam.search.evaluator",
    "supersam.training.session",
]


def python(code: str, *words: str) -> list[str]:
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_room_loads_the_compiler_at_its_import():
    assert python(IN_FRESH_PROCESS, *MODULES) == [f"{name} 0" for name in MODULES]


def test_the_compiler_is_the_true_one_afterwards():
    code = (
        "import supersam.model, sys, torch, torch._dynamo\n"
        "pooling = sys.modules['torchvision.ops.roi_align']\n"
        "print(torch._dynamo.__file__, pooling.is_compile_supported('cpu'))\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())"
    )
    where, answer = python(code)
    assert where.endswith(f"{os.sep}_dynamo{os.sep}__init__.py True")
    assert answer == "2.0"


def test_a_torchvision_that_needs_more_of_the_compiler_is_imported_all_the_same(tmp_path):
    (tmp_path / "torchvision").mkdir()
    file = tmp_path / "torchvision/__init__.py"
    file.write_text("from torch._dynamo import allow_in_graph\n", encoding="utf-8")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import supersam.runtime.light_torchvision, torchvision; print(torchvision.__file__)"
    )
    assert python(code, str(tmp_path)) == [str(file)]


def test_a_torchvision_of_another_torch_is_told_in_one_line(tmp_path):
    # As the CUDA build is beside PyTorch's CPU build: its library of operators does not load.
    (tmp_path / "torchvision").mkdir()
    file = tmp_path / "torchvision/__init__.py"
    file.write_text(
        "import torch\n@torch.library.register_fake('torchvision::nms')\ndef nms(): ...\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "supersam", "evaluate", "--run", str(tmp_path / "none")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "torchvision::nms" in line
    assert "--index-url https://download.pytorch.org/whl/cpu" in line
