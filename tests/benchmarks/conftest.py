"""Lets tests import the scripts of benchmarks/, which are no package."""

import sys

from tests.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
