"""What a prediction is: of which image, with which model, from which prompts, to which file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, PositiveInt, model_validator

from supersam.config.sections import Section


class PredictRun(Section):
    """Masks of one image, as a picture and as COCO JSON."""

    image: Annotated[Path, tyro.conf.Positional]
    """Image file. Its pixels are used as stored: an EXIF orientation is ignored."""
    export: Path | None = None
    """Folder that `supersam export` wrote: the model."""
    run: Path | None = None
    """Folder of a training run instead: the model is its --subnet."""
    subnet: str = "largest"
    """With --run: largest, smallest, medium, a JSON file of a subnet, or SEARCH#best, SEARCH#knee,
    SEARCH#cheapest, SEARCH#0."""
    checkpoint: str = "last"
    """With --run: last, best, initial (the weights before training), or a step number."""
    box: tuple[str, ...] = ()
    """Boxes x0,y0,x1,y1 in pixels of the image: one mask for each, the model's single mask."""
    point: tuple[str, ...] = ()
    """Points x,y in pixels of the image: one mask for each, the best of three by the model's own
    estimate."""
    auto: bool = False
    """Find all objects without prompts: segment-anything's SamAutomaticMaskGenerator."""
    points_per_side: PositiveInt = 32
    """With --auto: points of the grid along each side of the image."""
    min_iou: float = Field(0.88, ge=0, le=1)
    """With --auto: drop masks whose own estimate of the IoU is lower."""
    min_stability: float = Field(0.95, ge=0, le=1)
    """With --auto: drop masks that change more when the threshold moves."""
    out: Path
    """Picture to write, a .png file; the masks lie beside it as COCO JSON. Both are replaced where
    they exist."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    threads: int = Field(0, ge=0)
    """CPU threads. 0: what OMP_NUM_THREADS or SLURM_CPUS_PER_TASK says, else one for each core."""

    @property
    def boxes(self) -> list[tuple[float, ...]]:
        """The boxes as numbers, pixels."""
        return [_numbers("--box", text, 4) for text in self.box]

    @property
    def points(self) -> list[tuple[float, ...]]:
        """The points as numbers, pixels."""
        return [_numbers("--point", text, 2) for text in self.point]

    @model_validator(mode="after")
    def _one_model_and_some_prompt(self) -> PredictRun:
        if (self.export is None) == (self.run is None):
            raise ValueError("name one model: --export DIR, or --run DIR with --subnet")
        if not (self.box or self.point or self.auto):
            raise ValueError("say what to segment: --box x0,y0,x1,y1, --point x,y, or --auto")
        if self.auto and (self.box or self.point):
            raise ValueError("--auto takes no prompts; drop --box and --point, or --auto")
        for x0, y0, x1, y1 in self.boxes:
            if x0 >= x1 or y0 >= y1:
                raise ValueError(
                    f"--box {x0:g},{y0:g},{x1:g},{y1:g} is empty; give x0,y0,x1,y1 with x0 < x1, "
                    "y0 < y1"
                )
        assert all(len(point) == 2 for point in self.points)  # parsed, so checked
        return self

    @model_validator(mode="after")
    def _out_is_a_new_picture(self) -> PredictRun:
        if self.out.suffix.lower() != ".png":
            raise ValueError(
                f"--out {self.out} is not a .png file; name one: the JSON is written beside it"
            )
        if self.image.resolve() in (self.out.resolve(), self.out.with_suffix(".json").resolve()):
            raise ValueError(f"--out {self.out} would replace the image itself; choose another")
        return self


def _numbers(flag: str, text: str, count: int) -> tuple[float, ...]:
    shape = "x,y" if count == 2 else "x0,y0,x1,y1"
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(0 <= number < float("inf") for number in numbers):
        raise ValueError(f"{flag} {text} is not {shape}; give {count} pixel numbers with commas")
    return numbers
