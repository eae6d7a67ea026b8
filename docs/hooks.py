"""Pages that are made when the site is built: the reference of all settings, from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from supersam.config.commands import COMMANDS

PAGE = "reference/settings.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of settings."""
    files.append(File.generated(config, PAGE, content=settings_page()))
    return files


def settings_page() -> str:
    """Every setting of every command: its flag, default and meaning."""
    parts = [
        "# Settings\n",
        "Each setting is a flag, and a key of a YAML file that `--config` reads; flags win over "
        "files. This page is made from the code that reads them.\n",
    ]
    for name, command in COMMANDS.items():
        parts += [f"## {name}\n", f"`supersam {name}`: {command.summary}.\n"]
        parts += ["| setting | default | meaning |", "| --- | --- | --- |"]
        parts += [*_rows(command.run_type, ""), ""]
    return "\n".join(parts)


def _rows(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name}.")
        elif field.description:
            yield f"| `{prefix}{name}` | {_default(field)} | {_text(field.description)} |"


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    return "" if value is None or value == () else f"`{value}`"


def _text(description: str) -> str:
    return " ".join(description.split()).replace("|", "\\|").replace("<", "&lt;")
