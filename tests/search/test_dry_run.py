"""What is done of a search before anything is evaluated."""

import subprocess
import sys

from supersam.config.files import SEARCH_FILE
from tests.search.tiny_search import tiny_search


def test_a_search_is_described_and_its_folder_prepared_where_torch_cannot_be_imported(
    run, tmp_path
):
    """On a login node torch takes longer to import than all the rest of a submission."""
    asked = tiny_search(run, tmp_path / "search", dry_run=True)
    script = f"""
import sys
sys.modules["torch"] = sys.modules["ray"] = None
from supersam.search.command import run_search_here
from supersam.config import SearchRun
from supersam.search.folder import prepare_folder
from supersam.search.inputs import find_inputs
asked = SearchRun.model_validate_json({asked.model_dump_json(by_alias=True)!r})
assert run_search_here(asked) == 0
assert not [name for name in sys.modules if name.startswith("supersam.cluster")]
prepare_folder(asked, find_inputs(asked))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"folder: {asked.folder}" in done.stdout
    assert (asked.folder / SEARCH_FILE).is_file()
