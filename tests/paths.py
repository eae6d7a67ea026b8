"""Where tests find the project and the real data, which is no part of it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("SUPERSAM_TEST_DATA", ROOT.parent / "shared" / "data"))

needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(),
    reason=f"no real data at {REAL_DATA}; set SUPERSAM_TEST_DATA to its folder",
)
