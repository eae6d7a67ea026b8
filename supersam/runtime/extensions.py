"""Objects of the user's own, named `module:object` in a configuration. Imports no torch.

Apart from its users on five floors: sources, losses, scores, searchers and metric writers.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from supersam.config import UserError


def is_extension(name: str) -> bool:
    """Whether a setting names an object of the user's own rather than one of SuperSAM's."""
    return ":" in name


def load_extension(name: str, flag: str) -> Any:
    """Import `module:object`; modules of the working folder are found too.

    flag: the setting, for messages. Raises UserError where there is no such module or object.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as fault:
        raise UserError(
            f"{flag} {name}: {fault}; run from the folder of {module}.py, or install it"
        ) from fault
    except AttributeError as fault:
        raise UserError(f"{flag} {name}: {fault}; check the name after the colon") from fault
