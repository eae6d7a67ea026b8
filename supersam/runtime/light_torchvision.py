"""Import torchvision without torch's compiler, which takes half of a process's start.

segment_anything needs torchvision, one file of which asks `torch._dynamo.utils` for a function that
it calls only when a region of interest is pooled, which SAM never does. That import alone loads
the compiler, sympy and triton: 4.5 of 9 CPU seconds before an evaluation begins. Importing this
module imports torchvision with a stand-in for that function, which loads the compiler when it is
called. `torch.compile` finds the true compiler as ever. A torchvision that does not fit PyTorch is
a UserError, where torchvision alone ends in a traceback about one of its operators.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from importlib.metadata import version
from types import ModuleType

from supersam.config import UserError

_COMPILER = "torch._dynamo"


def is_compile_supported(device_type: str) -> bool:
    """Answer as `torch._dynamo.utils.is_compile_supported`, which is loaded now."""
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


def _import_torchvision() -> None:
    package, utils = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
    package.__path__ = []  # a package without files: any other import from it fails
    utils.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]  # new there
    sys.modules[_COMPILER], sys.modules[utils.__name__] = package, utils
    try:
        # A version that needs more of the compiler fails here; segment_anything's own import then
        # goes on with it, as the parts that are loaded stay.
        with contextlib.suppress(ImportError):
            importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise UserError(_mismatch(error)) from error
    finally:
        del sys.modules[_COMPILER], sys.modules[utils.__name__]


def _mismatch(error: RuntimeError) -> str:
    """Tell that torchvision's library of operators cannot be loaded."""
    torch, torchvision = version("torch"), version("torchvision")
    return (
        f"torchvision {torchvision} was built for another PyTorch than {torch} ({error}); install "
        f"both from one index, for a CPU: pip install --force-reinstall torch torchvision "
        f"--index-url https://download.pytorch.org/whl/cpu"
    )


importlib.import_module("torch")  # first: it must not meet the stand-in
if _COMPILER not in sys.modules and "torchvision" not in sys.modules:
    _import_torchvision()
