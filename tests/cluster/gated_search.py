"""`launch/search.py`, whose evaluators wait for a gate: a test holds a search back as it likes.

The file `gate` in the search's folder holds how many trials its journal may have before the next
chunk is begun; without the file, no chunk is. The gate is in the job's copy of the code alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from supersam import cli
from supersam.cluster.slurm import submit

GATE = '''


def _wait_for_gate(self, chunk, _evaluate=SubnetEvaluator.evaluate):
    """Added by a test, which opens the gate."""
    folder = self._search.folder
    journal, gate = folder / "journal.jsonl", folder / "gate"
    while True:
        done = journal.read_bytes().count(b'"stage": "search"') if journal.exists() else 0
        if done < (int(gate.read_text() or 0) if gate.exists() else 0):
            return _evaluate(self, chunk)
        time.sleep(0.1)


SubnetEvaluator.evaluate = _wait_for_gate
'''


def main() -> int:
    """Search as the words of the command line ask for."""
    copy = submit.snapshot_code

    def copy_with_gate(folder: Path) -> Path:
        code = copy(folder)
        with (code / "supersam" / "search" / "evaluator.py").open("a", encoding="utf-8") as file:
            file.write(GATE)
        return code

    submit.snapshot_code = copy_with_gate
    return cli.run_command("search", sys.argv[1:], prog="search")


if __name__ == "__main__":
    sys.exit(main())
