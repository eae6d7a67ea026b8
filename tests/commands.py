"""Commands as a user types them, without their imports: seconds less for each.

A server that has imported torch and the package once forks a process for each command. It gets
words, folder, environment, output and exit code of its own, and runs launch/NAME.py as Python
would. What a test needs a real interpreter for (signals, closed pipes, other environments) starts
one itself.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.forkserver import set_forkserver_preload
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from tests.paths import ROOT
from tests.patience import PATIENCE_S

PRELOADED = ["tests.preloaded"]


def launch(
    name: str,
    *words: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] = {},
    timeout_s: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """What `python launch/NAME.py WORDS` prints and returns, run in the folder `cwd`.

    env: variables beside those of the tests' own process.
    """
    arguments = [str(ROOT / "launch" / f"{name}.py"), *map(str, words)]
    with TemporaryDirectory() as place:
        files = [Path(place, stream) for stream in ("stdout", "stderr")]
        process = server().Process(
            target=_run, args=(arguments, str(cwd), {**os.environ, **env}, files)
        )
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout_s, *(f.read_text() for f in files))
        printed = [file.read_text(encoding="utf-8") for file in files]
    assert process.exitcode is not None
    return subprocess.CompletedProcess(arguments, process.exitcode, *printed)


def server():
    """The context whose processes the fork server begins; it ends with the tests."""
    set_forkserver_preload(PRELOADED)
    return get_context("forkserver")


def _run(arguments: list[str], cwd: str, env: dict[str, str], files: list[Path]) -> NoReturn:
    """Become the command: never returns."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for descriptor, path in ((0, Path(os.devnull)), *zip((1, 2), files, strict=True)):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, descriptor)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115  # as an interpreter opens them
    sys.argv = arguments
    code = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as an interpreter ends with any fault
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
