"""What a search is: budget, searcher, objectives, constraints, and how subnets are evaluated."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from supersam.config.cluster import SearchCluster
from supersam.config.files import RESULTS
from supersam.config.sections import NAME, Extension, Fraction, Section, or_own

Flat = tyro.conf.arg(name="")

SearcherName = Literal[
    "random", "nsga2", "regularized", "optuna", "opentuner", "predictor", "budget", "exhaustive"
]
SamplingName = Literal["genes", "params_m", "flops_g"]
Metric = Literal["miou", "params_m", "flops_g", "latency_ms", "peak_mem_mib"]
LIMITABLE: tuple[str, ...] = ("params_m", "flops_g", "latency_ms", "peak_mem_mib")
"""Metrics a constraint may name: known before a subnet is evaluated on images."""
MEASURED = frozenset({"latency_ms", "peak_mem_mib"})
"""Metrics taken on the device; the other costs are closed formulas."""
_CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=|==|<|>|=)\s*(\S+)\s*")
_UNITS = {
    "params_m": "millions of parameters",
    "flops_g": "GFLOPs",
    "latency_ms": "milliseconds",
    "peak_mem_mib": "MiB",
}


@dataclass(frozen=True)
class Constraint:
    """A hard limit on one metric."""

    metric: str
    is_upper: bool
    """Whether `limit` is the most, else the least."""
    limit: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """What `params_m<=45` means. Raises ValueError with the fault and how to write it."""
        match = _CONSTRAINT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not METRIC<=NUMBER or METRIC>=NUMBER, such as "
                "params_m<=45; features of nodes are --node-constraint"
            )
        metric, sign, number = match.groups()
        _require_limitable(metric, text)
        if sign not in ("<=", ">="):
            raise ValueError(
                f"{text!r} has {sign}; a limit includes its number: write "
                f"{metric}<={number} or {metric}>={number}"
            )
        return cls(metric, sign == "<=", _limit(number, metric, text))

    def allows(self, value: float) -> bool:
        """Whether `value` keeps the limit."""
        return value <= self.limit if self.is_upper else value >= self.limit

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.is_upper else '>='} {self.limit:g}"


def _require_limitable(metric: str, text: str) -> None:
    if metric in LIMITABLE:
        return
    known = ", ".join(LIMITABLE)
    if metric in get_args(Metric):
        raise ValueError(
            f"{text!r} limits what only evaluation tells; limits are on {known}, and "
            f"{metric} is one of --objectives: choose from the front by it"
        )
    close = difflib.get_close_matches(metric, LIMITABLE, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"{text!r} names an unknown metric; {hint}known are {known}")


def _limit(number: str, metric: str, text: str) -> float:
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise ValueError(
            f"{text!r}: {number!r} is not a number above 0; {metric} counts "
            f"{_UNITS[metric]}, such as {metric}<=45"
        )
    return limit


def _valid_constraint(text: str) -> str:
    Constraint.parse(text)
    return text


ConstraintText = Annotated[str, AfterValidator(_valid_constraint)]


class ProtocolConfig(Section):
    """How a subnet's accuracy is taken. Trials of one folder all have the same protocol."""

    prompt: Literal["point", "box", "both"] | None = None
    """The stored prompt of each object. both: mIoU is the mean of what the point and what the box
    gives. Null takes what the folder's search has, else both: a box alone says so much of its
    object that subnets hardly differ."""
    images: PositiveInt | None = 128
    """Images to look at, spread evenly over the set; null looks at all."""
    objects_per_image: PositiveInt | None = 16
    """Objects of an image to look at, spread evenly; null looks at all."""
    resolution: Literal["logits", "original"] = "original"
    """Where IoU is taken while searching; the front is always reported at the original one. logits
    is faster where a GPU waits for the masks, and may order close subnets otherwise."""
    images_per_batch: PositiveInt = 4
    """Images encoded at a time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 with fp32 weights."""
    rungs: tuple[Fraction, ...] = ()
    """Shares of the images after which hopeless subnets are given up, ascending; empty never."""
    keep: float = Field(1 / 3, gt=0, lt=1)
    """Share of the subnets seen so far that goes on after a rung (1 / eta of ASHA)."""

    @property
    def prompts(self) -> tuple[Literal["point", "box"], ...]:
        """The prompts that every object is predicted from."""
        if self.prompt is None or self.prompt == "both":
            return ("point", "box")
        return (self.prompt,)

    @model_validator(mode="after")
    def _rungs_ascend(self) -> ProtocolConfig:
        if list(self.rungs) != sorted(set(self.rungs)) or not all(0 < r < 1 for r in self.rungs):
            raise ValueError(
                f"--protocol.rungs {' '.join(map(str, self.rungs))} must ascend, between 0 and 1"
            )
        return self


class LatencyConfig(Section):
    """How latency is measured, on the node that evaluates."""

    batch: PositiveInt = 1
    """Images encoded at a time; one prompt is decoded on each."""
    warmup: PositiveInt = 3
    """Runs before the clock counts."""
    repeats: PositiveInt = 20
    """Timed runs; their median counts, their quartile distance is the spread."""


class SweepConfig(Section):
    """Several searches at once: every searcher with every constraint and every seed."""

    searchers: tuple[SearcherName, ...] = ()
    """Searchers to compare; empty takes the one of the search."""
    constraints: tuple[ConstraintText, ...] = ()
    """Each a search of its own, besides the constraints of all; empty adds none."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Seeds; empty takes the one of the search."""

    @model_validator(mode="after")
    def _each_once(self) -> SweepConfig:
        parsed = tuple(Constraint.parse(text) for text in self.constraints)
        for name, values in (
            ("searchers", self.searchers),
            ("constraints", parsed),
            ("seeds", self.seeds),
        ):
            again = [str(value) for place, value in enumerate(values) if value in values[:place]]
            if again:
                raise ValueError(f"--sweep.{name} hold {', '.join(again)} twice; name each once")
        return self

    @property
    def is_empty(self) -> bool:
        """Whether this is one search only."""
        return not (self.searchers or self.constraints or self.seeds)


class SearchRun(Section):
    """The best subnets of a trained supernet for a budget."""

    run: Path
    """Folder of a training run."""
    name: Annotated[str, Field(pattern=NAME)] = "search"
    """Name of the search; its folder is RUN/results/NAME."""
    out: Path | None = None
    """Folder of the search; null takes RUN/results/NAME."""
    trials: PositiveInt = 200
    """Subnets to evaluate. The same command with a larger number goes on."""
    searcher: Annotated[SearcherName | Extension, or_own(SearcherName)] = "nsga2"
    """Who proposes subnets; or module:class of a Searcher of your own."""
    evidence: Path | None = None
    """The evidence.json of the run's design: the first proposals of any searcher then follow from
    the sensitivities that the design measured; those of --searcher budget all do."""
    sampling: SamplingName = "genes"
    """How random subnets are drawn, by the random searcher and as the first subnets of the others.
    genes: each layer and width by itself, which hardly leaves the middle sizes; params_m, flops_g:
    spread evenly over the sizes from the smallest to the widest."""
    objectives: tuple[Metric, ...] = ("miou", "params_m")
    """What is traded off: mIoU is maximised, everything else minimised."""
    constraint: tuple[ConstraintText, ...] = ()
    """Hard limits on subnets, such as "params_m<=45"; one outside is never evaluated."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seeds every draw of the search."""
    population: PositiveInt = 32
    """Subnets proposed at a time; parents of an evolution."""
    chunk: PositiveInt = 8
    """Most subnets an evaluator takes at a time; they share their common leading layers."""
    cache_gib: float | None = Field(None, ge=0)
    """Memory of each evaluator for outputs of layers that later subnets may share, GiB; besides the
    model and the images. Null takes what a generation can fill, at most a quarter of what is free
    on its host or GPU, in equal parts; 0 keeps none."""
    data: tuple[Path, ...] = ()
    """Folders of held-out shards; empty takes the run's validation sets."""
    final_data: tuple[Path, ...] = ()
    """Folders of other held-out shards: the front is measured once more on these images, which no
    proposal saw. The best of many subnets looks better than it is on the images it was selected
    on. May be added to a search that is done."""
    final_share: float | None = Field(None, gt=0, lt=1)
    """Instead of --final-data: keep this share of the sources of the data aside for the end."""
    checkpoint: str = "last"
    """last, best, or a step number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    threads: int = Field(0, ge=0)
    """CPU threads of each evaluator. 0: what OMP_NUM_THREADS or SLURM_CPUS_PER_TASK says, else an
    equal part of the host's cores."""
    dry_run: bool = False
    """Print what would be searched and submitted, and stop."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print the result as one JSON object on stdout."""
    protocol: ProtocolConfig = ProtocolConfig()
    latency: LatencyConfig = LatencyConfig()
    sweep: SweepConfig = SweepConfig()
    cluster: Annotated[SearchCluster, Flat] = SearchCluster()

    @property
    def folder(self) -> Path:
        """The search's folder."""
        return self.out if self.out is not None else self.run / RESULTS / self.name

    @property
    def chunk_size(self) -> int:
        """Subnets of a chunk: fewer where a population would not go round all evaluators."""
        evaluators = (self.cluster.nodes or 1) * (self.cluster.evaluators_per_node or 1)
        return min(self.chunk, math.ceil(self.population / evaluators))

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The hard limits."""
        return tuple(Constraint.parse(text) for text in self.constraint)

    @property
    def measured(self) -> tuple[str, ...]:
        """Metrics to take on the device, because they count or are limited."""
        named = {*self.objectives, *(limit.metric for limit in self.constraints)}
        return tuple(name for name in get_args(Metric) if name in named & MEASURED)

    @model_validator(mode="after")
    def _one_final_set(self) -> SearchRun:
        if self.final_data and self.final_share is not None:
            raise ValueError("give either --final-data DIR or --final-share X, not both")
        return self

    @model_validator(mode="after")
    def _objectives_differ(self) -> SearchRun:
        if len(self.objectives) == 0 or len(set(self.objectives)) != len(self.objectives):
            given = " ".join(self.objectives) or "none"
            raise ValueError(f"--objectives {given}; name one or more different metrics")
        return self

    @model_validator(mode="after")
    def _constraints_agree(self) -> SearchRun:
        for extra in self.sweep.constraints or ("",):
            limits = [Constraint.parse(text) for text in (*self.constraint, extra) if text]
            for low, high in product(limits, limits):
                contrary = low.metric == high.metric and low.limit > high.limit
                if contrary and not low.is_upper and high.is_upper:
                    raise ValueError(
                        f"constraints {low} and {high} leave nothing between them; drop one of them"
                    )
        return self
