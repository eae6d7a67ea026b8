"""Files appear whole or not at all."""

import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest

from supersam.runtime.atomic import (
    atomic_file,
    atomic_folder,
    file_sha256,
    stale_temporaries,
    temporaries,
    write_bytes,
    write_json,
)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail_half_way():
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_left_by_a_killed_process_of_the_same_number_is_replaced(tmp_path):
    """Containers begin with the same host name and the same few processes."""
    left = tmp_path / f".done.tmp.{socket.gethostname()}.{os.getpid()}"
    left.mkdir()
    (left / "half").touch()
    with atomic_folder(tmp_path / "done") as temporary:
        (temporary / "whole").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    assert [path.name for path in (tmp_path / "done").iterdir()] == ["whole"]


def test_a_folder_left_by_a_killed_process_is_removed_by_the_next(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    others = {f".other.tmp.{socket.gethostname()}.{gone.pid}", f".done.tmp.elsewhere.{gone.pid}"}
    for name in (*others, f".done.tmp.{socket.gethostname()}.{gone.pid}"):
        (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "done"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"done", *others}


def test_json_keeps_order_and_letters(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    text = (tmp_path / "a.json").read_text()
    assert text.index("b") < text.index("a")
    assert json.loads(text) == {"b": 1, "a": "ü"}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_the_hash_is_that_of_the_content(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_only_temporaries_of_the_dead_on_this_host_are_stale(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    dead, host = int(process.stdout), socket.gethostname()
    names = {
        f".a.h5.tmp.{host}.{dead}": True,
        f".a.h5.tmp.{host}.{os.getpid()}": False,
        f".a.h5.tmp.not-{host}.{dead}": False,
        ".a.h5.tmp.node.example.org.17": False,
    }
    for name in [*names, "a.h5", ".hidden"]:
        (tmp_path / name).touch()
    assert [path.name for path in temporaries(tmp_path)] == sorted(names)
    assert [path.name for path in stale_temporaries(tmp_path)] == [
        name for name, stale in names.items() if stale
    ]
