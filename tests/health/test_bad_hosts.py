"""What one run learns of a host, the runs beside it know, for a day."""

from __future__ import annotations

import time
from pathlib import Path

from supersam.config.files import STRIKES_FILE
from supersam.health.bad_hosts import (
    LIFE_H,
    HostHang,
    bad_hosts,
    count_host_hangs,
    read_host_hangs,
    record_host_hang,
)


def strike(folder: Path, host: str, *, hours_ago: float = 0.0) -> None:
    when = time.time() - hours_ago * 3600
    record_host_hang(folder, HostHang(when, host, folder.name, rank=1, step=40, reason="hangs"))


def test_runs_share_their_strikes(tmp_path: Path) -> None:
    for name, host in (("a", "n1"), ("a", "n2"), ("b", "n1")):
        strike(tmp_path / name, host)
    for name in ("a", "b", "another"):
        assert count_host_hangs(tmp_path / name) == {"n1": 2, "n2": 1}


def test_one_strike_suffices_in_the_run_itself_and_two_in_others(tmp_path: Path) -> None:
    strike(tmp_path / "a", "n1")
    strike(tmp_path / "a", "n2")
    strike(tmp_path / "b", "n2")
    assert bad_hosts(tmp_path / "a") == {"n1", "n2"}
    assert bad_hosts(tmp_path / "b") == {"n2"}
    assert bad_hosts(tmp_path / "another") == {"n2"}


def test_a_strike_expires(tmp_path: Path) -> None:
    strike(tmp_path / "a", "n1", hours_ago=LIFE_H + 0.1)
    strike(tmp_path / "a", "n2", hours_ago=LIFE_H - 0.1)
    assert bad_hosts(tmp_path / "a") == {"n2"}


def test_a_line_cut_short_costs_only_itself(tmp_path: Path) -> None:
    strike(tmp_path / "a", "n1")
    with (tmp_path / STRIKES_FILE).open("a", encoding="utf-8") as file:
        file.write('{"time": 1, "ho\n')
    strike(tmp_path / "a", "n3")
    assert [s.host for s in read_host_hangs(tmp_path / "a")] == ["n1", "n3"]
