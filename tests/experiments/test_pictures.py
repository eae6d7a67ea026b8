"""The pictures of the documentation, drawn from a search's folder, and screenshots."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import pictures
from tests.paths import ROOT


@pytest.fixture
def search(tmp_path):
    folder = tmp_path / "search"
    (folder / "figures").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (96, 320, 3), np.uint8)
    Image.fromarray(noise).save(folder / "figures" / "masks.png")
    (folder / "figures" / "front.svg").write_text("<svg/>")
    return folder


def test_without_a_browser_the_figures_are_drawn_and_it_is_said(
    search, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(
        sys, "argv", ["pictures", "--search", str(search), "--out", str(tmp_path / "images")]
    )
    pictures.main()
    assert "no screenshots" in capsys.readouterr().out
    assert (tmp_path / "images" / "front.svg").read_text() == "<svg/>"
    assert Image.open(tmp_path / "images" / "masks.png").size == (960, 288)


def test_the_picture_of_subnets_in_the_docs_is_what_the_script_draws(tmp_path):
    pictures.draw_subnets(tmp_path / "subnets.svg")
    kept = ROOT / "docs" / "images" / "subnets.svg"
    assert (tmp_path / "subnets.svg").read_text() == kept.read_text()


@pytest.mark.skipif(
    not any(map(shutil.which, pictures.BROWSERS)), reason="it takes pictures with a Chromium"
)
@pytest.mark.slow
@pytest.mark.parametrize(("dark", "expected"), [(False, 255), (True, 0)])
def test_a_page_is_shot_at_a_phones_width_in_the_readers_colours(tmp_path, dark, expected):
    page = tmp_path / "page.html"
    page.write_text(
        "<style>body{background:#fff} @media (prefers-color-scheme: dark){body{background:#000}}"
        "</style>"
    )
    browser = next(filter(None, map(shutil.which, pictures.BROWSERS)))
    pictures.shoot(browser, page.as_uri(), tmp_path / "page.png", (390, 500), dark=dark)
    shot = Image.open(tmp_path / "page.png").convert("L")
    assert shot.size == (390, 500)
    assert shot.getpixel((200, 250)) == expected
