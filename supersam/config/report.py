"""What a report is: of which searches, where to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field, model_validator

from supersam.config.sections import Section


class ReportRun(Section):
    """A page about a search, or about several of one supernet."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of searches; several are compared."""
    out: Path | None = None
    """Folder of a comparison. A single search's page lies in its own folder."""
    images: int = Field(3, ge=0)
    """Held-out images shown with the masks of three subnets; 0 loads no model."""

    @model_validator(mode="after")
    def _one_or_several(self) -> ReportRun:
        if not self.folders:
            raise ValueError("name the folder of a search, or several to compare")
        if len(self.folders) > 1 and self.out is None:
            raise ValueError("several searches need --out DIR, the folder of their comparison")
        if len(self.folders) == 1 and self.out is not None:
            raise ValueError("a single search's page lies in its own folder; drop --out")
        return self
