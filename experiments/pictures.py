"""Draw the pictures of the documentation from one search, of which a report is written.

python -m experiments.pictures --search runs/nuclei_supernet/results/search

Writes to --out: subnets.svg (three subnets of ViT-B, without any search), and with --search:
masks.png (a strip: prompts, annotation, three subnets), front.svg, and, where a Chromium is found,
report-desktop.png, report-phone.png, report-dark.png and tensorboard.png. The search must have its
report (launch/report.py). Nothing of the search's folder is changed.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from supersam.cluster.rendezvous import free_port
from supersam.config import SearchRun, load_run
from supersam.config.files import FIGURES, REPORT_FILE, SEARCH_YAML
from supersam.search.report.drawing import draw_subnet
from supersam.search.report.parts import render_drawing
from supersam.space import SHAPES, published_space, subnet_cost
from supersam.status.tensorboard import link_boards, pinned_query

STRIP_PX = 1000
SPACE_PX = 24
COLOURS = 128
"""Of a picture's palette: screenshots stay below 150 KB."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOST = "127.0.0.1"


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw_subnets(args.out / "subnets.svg")
    if args.search is not None:
        draw_search(args)
    for path in sorted(args.out.iterdir()):
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def draw_search(args: argparse.Namespace) -> None:
    draw_strip(args.search / FIGURES / "masks.png", args.out / "masks.png")
    shutil.copyfile(args.search / FIGURES / "front.svg", args.out / "front.svg")
    browser = args.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no browser ({', '.join(BROWSERS)}): no screenshots; --browser names one")
        return
    page = (args.search / REPORT_FILE).resolve().as_uri()
    shoot(browser, page, args.out / "report-desktop.png", (1280, 1500))
    shoot(browser, page, args.out / "report-phone.png", (390, 1500))
    shoot(browser, page, args.out / "report-dark.png", (1280, 900), dark=True)
    with serve_boards(args.logdir or load_run(SearchRun, args.search / SEARCH_YAML).run) as board:
        shoot(browser, board, args.out / "tensorboard.png", (1280, 900), wait_s=args.wait_s)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", type=Path, help="folder of a finished search")
    parser.add_argument("--logdir", type=Path, help="curves to show; by default the run's")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--browser", help="a Chromium")
    parser.add_argument(
        "--wait-s", type=float, default=60.0, help="for TensorBoard to draw; of virtual time"
    )
    return parser.parse_args()


def draw_subnets(path: Path) -> None:
    """The largest, the medium and the smallest subnet of ViT-B's published space, side by side."""
    shape = SHAPES["vit_b"]
    space, parts, x = published_space(shape), [], 0
    for name in ("largest", "medium", "smallest"):
        spec = getattr(space, name)()
        drawing = draw_subnet(spec, shape, name=name)
        title = f"{name}: {subnet_cost(spec, shape).params_m:.1f} M parameters"
        parts.append(f'<text x="{x + 4}" y="16" font-size="14">{title}</text>')
        parts.append(render_drawing(drawing).replace("<svg ", f'<svg x="{x}" y="24" ', 1))
        x += drawing.width + SPACE_PX
    size = f"{x - SPACE_PX} {drawing.height + 24}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" fill="#64748b" '
    path.write_text("\n".join([f'{head}font-family="sans-serif">', *parts, "</svg>\n"]))


def draw_strip(source: Path, path: Path) -> None:
    """The report's masks, enlarged to a width that a page can show; pixels stay visible."""
    strip = Image.open(source).convert("RGB")
    times = max(1, round(STRIP_PX / strip.width))
    save_small(
        strip.resize((strip.width * times, strip.height * times), Image.Resampling.LANCZOS), path
    )


def save_small(picture: Image.Image, path: Path) -> None:
    """Save as a PNG with a palette."""
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def shoot(
    browser: str,
    address: str,
    path: Path,
    size: tuple[int, int],
    *,
    dark: bool = False,
    wait_s: float = 10.0,
) -> None:
    """Take a picture of the upper part of a page in a window of `size`, pixels."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={scratch}/profile", f"--screenshot={raw}"]
        command += [
            f"--window-size={size[0]},{size[1]}",
            f"--virtual-time-budget={1000 * wait_s:.0f}",
        ]
        command += ["--blink-settings=preferredColorScheme=0"] if dark else []
        subprocess.run([*command, address], check=True, capture_output=True, timeout=600)
        save_small(Image.open(raw), path)


@contextlib.contextmanager
def serve_boards(logdir: Path) -> Iterator[str]:
    """TensorBoard of the runs below `logdir`, validation on top; yields its address."""
    port = free_port(HOST)
    with tempfile.TemporaryDirectory() as links:
        link_boards(logdir, Path(links))
        command = [sys.executable, "-m", "tensorboard.main", f"--logdir={links}"]
        server = subprocess.Popen(
            [*command, f"--port={port}", f"--host={HOST}"], stderr=subprocess.DEVNULL
        )
        try:
            wait_for(f"http://{HOST}:{port}/data/runs")
            yield f"http://{HOST}:{port}/?{pinned_query()}#timeseries"
        finally:
            server.terminate()
            server.wait()


def wait_for(address: str, within_s: float = 300.0) -> None:
    deadline = time.monotonic() + within_s
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            direct.open(address, timeout=10).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


if __name__ == "__main__":
    main()
