"""Where a run runs, and what Slurm is asked for. A value from here can never become a command."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from typing_extensions import Self

from supersam.config.sections import Section

# Letters, digits and what node lists, features and sizes are written with. No blanks, quotes,
# backslashes, dollar signs or control characters: nothing that a shell or a script would read.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:;/@%+=^&|*()\[\]-]+")
_OPTION = re.compile(r"[a-z][a-z0-9-]*=.*", re.DOTALL)
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
# What SuperSAM sets itself, and what would run a command or change what a job may see.
_OWN_OPTIONS = {
    *("array", "chdir", "cpus-per-task", "error", "export", "export-file", "input", "job-name"),
    *("kill-on-bad-exit", "no-kill", "no-requeue", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "signal", "time", "wrap"),
}


def plain(value: str) -> str:
    """Return `value`. Raises ValueError where a script could read it as more than text."""
    if _PLAIN.fullmatch(value) is None:
        raise ValueError(
            "holds a character that could be read as a command; allowed are letters, digits and "
            "_.,:;/@%+=^&|*()[]-"
        )
    return value


def minutes(text: str) -> int:
    """Minutes of a time limit as Slurm writes it, rounded up: 90, 30:00, 02:00:00, 1-12:00:00."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("is not a time; write minutes, HH:MM:SS or D-HH:MM:SS")
    days, *rest = match.groups()
    fields = [int(field) for field in rest if field is not None]
    if days is not None:  # D-HH, D-HH:MM, D-HH:MM:SS
        hours, mins, seconds = (fields + [0, 0])[:3]
    elif len(fields) == 3:
        hours, mins, seconds = fields
    else:  # MM, MM:SS
        hours, (mins, seconds) = 0, (fields + [0])[:2]
    return (int(days or 0) * 24 + hours) * 60 + mins + (seconds > 0)


def _time_text(value: object) -> object:
    return str(value) if isinstance(value, int) else value  # minutes


def _valid_time(value: str) -> str:
    if minutes(value) < 1:
        raise ValueError("is not a time limit; the least is 1 minute")
    return value


def _option_list(value: object) -> object:
    """`sbatch` may be a mapping in YAML; on the command line it is words KEY=VALUE."""
    if isinstance(value, dict):
        return tuple(f"{key}={_text(item)}" for key, item in value.items())
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _valid_option(option: str) -> str:
    if _OPTION.fullmatch(option) is None:
        raise ValueError("must be KEY=VALUE with a long option of sbatch, such as mail-type=END")
    key, _, value = option.partition("=")
    if key in _OWN_OPTIONS:
        raise ValueError(f"{key} is set by SuperSAM; use its own flags")
    plain(value)
    return option


def _valid_command(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds a control character")
    try:
        words = shlex.split(value)
    except ValueError as fault:
        raise ValueError(f"cannot be read as words: {fault}") from None
    if not words:
        raise ValueError('is empty; write a command and its flags, "evaluate --subnet smallest"')
    return value


Plain = Annotated[str, AfterValidator(plain)]
SlurmTime = Annotated[str, BeforeValidator(_time_text), AfterValidator(_valid_time)]


class SlurmSite(Section):
    """What every job says of its place: fields that all commands share."""

    other_commands: ClassVar[frozenset[str]] = frozenset()
    """Settings of a site's profile that this command does not use: read, and left out."""

    cluster: Literal["auto", "inline", "local", "slurm"] = "auto"
    """auto: Slurm where --nodes is given, else this machine; inline: this process, a search without
    Ray; local: processes of this machine."""
    nodes: PositiveInt | None = None
    """Nodes of the Slurm job."""
    partition: Plain | None = None
    """Slurm partition; null takes the site's default."""
    account: Plain | None = None
    """Account to charge."""
    qos: Plain | None = None
    """Quality of service."""
    time: SlurmTime | None = None
    """Time limit of one job: minutes, HH:MM:SS or D-HH:MM:SS. The work goes on in the next."""
    constraint: Annotated[Plain | None, tyro.conf.arg(name="node-constraint")] = None
    """Node features."""
    exclude: Plain | None = None
    """Nodes to leave out."""
    gpus_per_node: PositiveInt | None = None
    """GPUs of each node; null asks for none."""
    cpus_per_task: PositiveInt | None = None
    """Cores of each task; null asks for one."""
    mem: Plain | None = None
    """Memory of each node, such as 64G."""
    sbatch: Annotated[
        tuple[Annotated[str, AfterValidator(_valid_option)], ...], BeforeValidator(_option_list)
    ] = ()
    """Further options of sbatch, KEY=VALUE."""
    wait: bool = False
    """Stay, show the log, and exit as the job does; Ctrl-C leaves the job running."""
    signal_delay_s: int = Field(120, ge=10)
    """Seconds before the time limit at which the work is told to save and end, to go on later."""

    @model_validator(mode="before")
    @classmethod
    def _without_other_commands(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not cls.other_commands:
            return values
        if values.get("then") is not None:
            raise ValueError("--then follows a training alone; leave it out")
        return {name: value for name, value in values.items() if name not in cls.other_commands}

    @model_validator(mode="after")
    def _node_counts_agree(self) -> Self:
        fewest = getattr(self, "min_nodes", None)
        if fewest is not None and fewest > (self.nodes or 1):
            raise ValueError(f"--min-nodes {fewest} is more than --nodes {self.nodes or 1}")
        return self

    @property
    def fewest_nodes(self) -> int:
        """Nodes that the job cannot do without."""
        return self.nodes or 1

    @property
    def asks_for_slurm(self) -> bool:
        """Whether a Slurm job is meant: `auto` means one where nodes are named."""
        return self.cluster == "slurm" or (self.cluster == "auto" and self.nodes is not None)


class RankCluster(SlurmSite):
    """Where ranks run: a host that fails takes its ranks along."""

    nodes: PositiveInt | None = None
    """Nodes of the Slurm job that work; spare ones come on top."""
    min_nodes: PositiveInt | None = None
    """Fewest nodes to go on with when hosts fail or are not free; null insists on `nodes`."""
    spare_nodes: int = Field(0, ge=0)
    """Further nodes, where they are free: idle until one that works fails."""
    tasks_per_node: PositiveInt | None = None
    """Ranks on each node (with `local`: on this machine); null takes one per GPU, else one."""
    constraint: Annotated[
        Plain | None, tyro.conf.arg(name="node-constraint", aliases=("--constraint",))
    ] = None
    """Node features; --node-constraint with every command, as a search's --constraint is on
    subnets."""
    cpus_per_task: PositiveInt | None = None
    """Cores of each rank; null asks for one for the rank and one for each loader worker."""
    max_attempts_without_progress: PositiveInt = 3
    """Attempts in a row without a new checkpoint after which a job gives up."""

    @property
    def fewest_nodes(self) -> int:
        """Nodes that the job cannot do without."""
        return self.min_nodes or self.nodes or 1

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def may_lose_nodes(self) -> bool:
        """Whether the run can go on, in its allocation, without a host that failed."""
        return self.spare_nodes > 0 or self.min_nodes is not None


class TrainCluster(RankCluster):
    """Where a training runs."""

    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU; `--dry-run` says which batch fits. Null takes the visible GPU's."""
    then: Annotated[str, AfterValidator(_valid_command)] | None = None
    """Command after a training that has succeeded, evaluate or search, on Slurm as a job: "evaluate
    --subnet smallest"."""


class DesignCluster(RankCluster):
    """Where a design runs."""

    other_commands: ClassVar[frozenset[str]] = frozenset({"gpu_memory_gib", "then"})


class SearchCluster(SlurmSite):
    """Where a search runs. `--constraint` is the search's own, on subnets."""

    other_commands: ClassVar[frozenset[str]] = frozenset(
        {"spare_nodes", "tasks_per_node", "gpu_memory_gib", "max_attempts_without_progress", "then"}
    )

    min_nodes: PositiveInt | None = None
    """Fewest nodes to begin with where hosts do not join; null insists on `nodes`."""
    evaluators_per_node: PositiveInt | None = None
    """Evaluators on each node; null takes one per GPU, else one."""
    cpus_per_task: PositiveInt | None = None
    """Cores of each evaluator; null asks for one."""
