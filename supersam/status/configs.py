"""What `supersam config` does: list and print shipped configurations, and print JSON schemas.

A command of its own, which looks at no run.
"""

from __future__ import annotations

import json

from supersam.config.commands import COMMANDS
from supersam.config.errors import UserError
from supersam.config.runs import ConfigRun
from supersam.config.shipped import CONFIGS, find_config, shipped_configs
from supersam.runtime.process import ends_with_reader


def show_config(options: ConfigRun) -> int:
    """Print what was asked for. Returns the exit code."""
    with ends_with_reader():
        _show(options)
    return 0


def _show(options: ConfigRun) -> None:
    if options.schema_of is not None:
        print(schema_text(options.schema_of))
    elif options.name is not None:
        print(find_config(options.name).read_text(encoding="utf-8"), end="")
    else:
        print(f"shipped in {CONFIGS}; supersam config NAME prints one")
        for name, path in shipped_configs().items():
            print(f"  {name:18}{path.relative_to(CONFIGS)}")


def schema_text(command: str) -> str:
    """The JSON schema of a command's configuration. Raises UserError on an unknown command."""
    if command not in COMMANDS:
        raise UserError(f"--schema {command} is not a command; commands are {', '.join(COMMANDS)}")
    schema = COMMANDS[command].run_type.model_json_schema()
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2
    )
