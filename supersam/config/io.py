"""From YAML files and the command line to a validated run, and back to YAML. No torch."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

import tyro
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from supersam.config.choices import check_choices, known_flags
from supersam.config.errors import UserError, print_error
from supersam.config.files import RUN_FILE
from supersam.config.sections import NAME, PART
from supersam.config.shipped import find_config

Run = TypeVar("Run", bound=BaseModel)


def parse_cli(
    run_type: type[Run],
    args: Sequence[str] | None = None,
    *,
    default_config: Path | None = None,
    recall: bool = False,
    added: Sequence[str] = (),
    prog: str | None = None,
) -> Run:
    """The run that the command line asks for.

    Every `--config FILE` is merged in order, later ones win; flags win over files. Without any
    `--config`, `default_config` is read; with `recall`, and `--run DIR` of an existing run, that
    run's own `run.yaml`. `added` are flags of a script, not of the user; `prog` is the name in the
    help. Prints what is wrong and exits with 2 on a user's mistake.
    """
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    words = list(sys.argv[1:] if args is None else args)
    try:
        paths, flags = _split_config(words)
        recalled = _run_yaml(flags) if recall else None
        if recall and not recalled and not paths:
            _require_more_than_a_run(flags)
        if not paths and (recalled or default_config):
            paths = [path for path in (recalled or default_config,) if path is not None]
        check_choices(run_type, flags)
        values = merge(*(read_yaml(path) for path in paths))
        defaults = _lenient(run_type, values, ", ".join(map(str, paths)))
    except UserError as fault:
        raise SystemExit(print_error(fault)) from None
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(
                run_type,
                prog=prog,
                args=[*flags, *added],
                default=defaults,
                description=f"{run_type.__doc__}\n\n--config FILE (may repeat; later files win) "
                "reads values from YAML, --config NAME from a shipped file (supersam config lists "
                "them); flags win over files.",
            )
    except (SystemExit, ValidationError) as ended:
        refused = _refusal(ended)
        if refused is None:
            sys.stderr.write(boxed.getvalue())
            raise
        raise SystemExit(print_error(_describe_flags(run_type, refused, flags))) from None


def load_run(run_type: type[Run], path: Path) -> Run:
    """Read a resolved run, as written by `dump_run`. Raises UserError that lists every fault."""
    return _validate(run_type, read_yaml(path), str(path))


def dump_run(run: BaseModel) -> str:
    """The YAML text of a resolved run; `load_run` reads it back equal."""
    return dump_yaml(run.model_dump(mode="json", by_alias=True))


def merge(*trees: dict[str, Any]) -> dict[str, Any]:
    """One nested dict of several; later ones win, and only dicts are merged into each other."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge(merged[key], value) if both else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's top-level mapping. Raises UserError that names the file and the fault."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_RunLoader)
    except OSError as fault:
        raise UserError(f"cannot read {path}: {fault.strerror}") from fault
    except UnicodeDecodeError:
        raise UserError(f"cannot read {path}: it is not text in UTF-8; save it as such") from None
    except yaml.MarkedYAMLError as fault:
        raise UserError(f"cannot read {path}{_place(fault)}: {_in_one_line(fault)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        told = "nested too deep" if isinstance(fault, RecursionError) else _first_line(fault)
        raise UserError(f"cannot read {path}: {told}; is it a YAML file?") from None
    if not isinstance(values, dict):
        kind = {"NoneType": "empty", "list": "a list"}.get(type(values).__name__, "a single word")
        raise UserError(f"{path} is {kind}; it must be a mapping of names to values")
    return values


def _place(fault: yaml.MarkedYAMLError) -> str:
    mark = fault.problem_mark or fault.context_mark
    return "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"


def _in_one_line(fault: yaml.MarkedYAMLError) -> str:
    problem = str(fault.problem or fault.context)
    if "\\t" in problem:
        return f"{problem}; indent with spaces"
    if "another document" in problem:
        return "a second document begins, and a file holds one"
    return problem


def _first_line(fault: Exception) -> str:
    return str(fault).partition("\n")[0]


def dump_yaml(values: dict[str, Any]) -> str:
    """A mapping as YAML, in its own order, short lists on one line."""
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)


_TAG = "tag:yaml.org,2002:"
_ALTERED = (f"{_TAG}bool", f"{_TAG}int", f"{_TAG}timestamp")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
_WORDS = {
    "model_type": "is a section; write names and values under it, or leave it out",
    "string_type": "must be text; put it in quotes",
    "path_type": "must be a path; put it in quotes",
    "bool_parsing": "must be true or false",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "tuple_type": "must be a list, in brackets",
}
"""Of kinds of pydantic's faults, where its own words speak of Python."""
_PATTERNS = {
    NAME: "must be letters, digits and . _ -, the first a letter or digit",
    PART: "must be K/N, such as 2/8",
}
_NULL = re.compile(r"(^|=)null$")
"""YAML's word for nothing, alone or after `--flag=`; on a command line it means the same."""


_HOME = re.compile(r"(^|=)~(?=/)")
"""Of a path: a shell expands it at the beginning of a word alone, and YAML does nowhere."""


def _home(found: re.Match[str]) -> str:
    return found[1] + str(Path.home())


class _RunLoader(yaml.SafeLoader):
    """Safe YAML in which the same key twice is an error, and words and digits mean what they look.

    `when: off` is a word, `time: 1:30` and `name: 2026-12-01` are texts, 010 is ten. A field that
    is true or false takes yes, no, on and off all the same.
    """

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:place]]:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return node


def _construct_text(loader: _RunLoader, node: yaml.ScalarNode) -> str:
    return _HOME.sub(_home, str(loader.construct_scalar(node)))


_RunLoader.add_constructor("tag:yaml.org,2002:str", _construct_text)
_RunLoader.yaml_implicit_resolvers = {
    letter: [pair for pair in pairs if pair[0] not in _ALTERED or letter in "tTfF"]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RunLoader.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-+0123456789"))


def _split_config(words: list[str]) -> tuple[list[Path], list[str]]:
    """Take `--config NAME` and `--config=FILE` out of the words of a command line."""
    paths, rest, pending = [], [], iter(words)
    for word in pending:
        if word == "--config":
            value = next(pending, None)
            if value is None:
                raise UserError("--config needs a FILE or a NAME; supersam config lists the names")
            paths.append(find_config(value))
        elif word.startswith("--config="):
            paths.append(find_config(word.split("=", 1)[1]))
        else:
            rest.append(_HOME.sub(_home, _NULL.sub(r"\1None", word)))
    return paths, rest


def _run_yaml(flags: list[str]) -> Path | None:
    """The `run.yaml` of the existing run that `--run DIR` names."""
    for index, flag in enumerate(flags):
        name, _, value = flag.partition("=")
        folder = Path(value or "".join(flags[index + 1 : index + 2]))
        if name == "--run" and (folder / RUN_FILE).is_file():
            return folder / RUN_FILE
    return None


def _require_more_than_a_run(flags: list[str]) -> None:
    """`--run DIR` alone goes on with a run; where there is none, the name is mistyped."""
    words = [part for flag in flags for part in flag.split("=", 1)]
    if len(words) == 2 and words[0] == "--run":
        raise UserError(f"no run {words[1]} to go on with; --config FILE --run DIR begins one")


def _lenient(run_type: type[Run], values: dict[str, Any], where: str) -> Run:
    """The files' values as defaults for the flags.

    Everything wrong with a value is reported here. What only the whole run can violate (a missing
    required field, a check across sections) may still be mended by a flag, so it waits.
    """
    try:
        return run_type.model_validate(values)
    except ValidationError as fault:
        real = [e for e in fault.errors() if e["loc"] and e["type"] != "missing"]
        if real:
            raise UserError(_describe(run_type, real, where)) from None
    fields: dict[str, Any] = {}
    for name, field in run_type.model_fields.items():
        kind = field.annotation
        if name not in values:
            fields[name] = tyro.MISSING if field.is_required() else field.get_default()
        # Python 3.10 takes tuple[int, ...] for a class.
        elif get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
            fields[name] = kind.model_validate(values[name])
        else:
            fields[name] = TypeAdapter(field.rebuild_annotation()).validate_python(values[name])
    return run_type.model_construct(**fields)


def _validate(run_type: type[Run], values: dict[str, Any], where: str) -> Run:
    try:
        return run_type.model_validate(values)
    except ValidationError as fault:
        raise UserError(_describe(run_type, fault.errors(), where)) from None


def _refusal(ended: BaseException | None) -> ValidationError | None:
    """What made the flag parser give up, where a value was refused."""
    while ended is not None and not isinstance(ended, ValidationError):
        ended = ended.__context__
    return ended


def _describe_flags(run_type: type[BaseModel], refused: ValidationError, given: list[str]) -> str:
    """The faults of one section's values, each with its flag."""
    lines = []
    for error in refused.errors():
        names = [
            flag.names[0]
            for flag in known_flags(run_type)
            if (flag.section, flag.field) == (refused.title, *error["loc"][:1])
        ]
        typed = [name for name in names if name in given]
        field = ".".join(str(part) for part in error["loc"][:1])
        lines.append(_line(error, next(iter(typed or names), field)))
    return "\n  ".join(lines)


def _describe(run_type: type[BaseModel], errors: Sequence[Any], where: str) -> str:
    """All faults of a configuration, one a line, each with its dotted path."""
    lines = []
    for error in errors:
        path = ".".join(str(part) for part in error["loc"])
        if error["type"] in ("extra_forbidden", "invalid_key"):
            lines.append(f"{path}: unknown name{_nearest(run_type, error['loc'])}")
        else:
            lines.append(_line(error, path))
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    return "\n  ".join([f"{where}: {len(lines)} faults", *lines])


def _line(error: Any, name: str) -> str:
    """One fault: the name of the setting, what is wrong, and the value where neither says it."""
    told = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    told = _WORDS.get(error["type"], told)
    told = _PATTERNS.get(error.get("ctx", {}).get("pattern"), told)
    if not name or told.startswith("--"):
        return told
    shown = "null" if error["input"] is None else str(error["input"])
    is_told = isinstance(error["input"], dict) or repr(shown) in told
    return f"{name}: {told}" + ("" if is_told else f" (got {shown})")


def _nearest(run_type: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    schema: Any = run_type
    for part in loc[:-1]:
        schema = schema.model_fields[str(part)].annotation
    close = difflib.get_close_matches(str(loc[-1]), list(schema.model_fields), n=1, cutoff=0.5)
    return (
        f"; did you mean {close[0]}?" if close else f"; known are {', '.join(schema.model_fields)}"
    )
