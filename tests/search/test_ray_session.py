"""A Ray of a search's own, on this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASK = """
import os
from types import SimpleNamespace
from supersam.search.ray_session import local_ray
cluster = SimpleNamespace(evaluators_per_node=1)
with local_ray(SimpleNamespace(cluster=cluster)):
    import ray
    print(ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
"""


@pytest.mark.slow
def test_evaluators_have_the_priority_of_the_search():
    """Ray's own choice lets whatever else runs on the machine go first."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.stdout.strip() == "0", done.stderr
