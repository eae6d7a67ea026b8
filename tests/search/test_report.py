"""The page of a search: complete, by itself, and nothing in it that a user could smuggle in."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from supersam.config import ReportRun, SearchRun, UserError
from supersam.config.files import JOURNAL_FILE
from supersam.search.final_score import FinalScore
from supersam.search.folder import prepare_folder, write_record
from supersam.search.front import best, cheapest, knee, read_front, write_front
from supersam.search.inputs import find_inputs
from supersam.search.journal import Journal
from supersam.search.pareto import pareto_front
from supersam.search.report.baselines import describe_baselines
from supersam.search.report.comparison import distinguishing_names, read_searches, write_comparison
from supersam.search.report.content import read_report
from supersam.search.report.contributions import contributions, fewest_trials
from supersam.search.report.drawing import draw_subnet
from supersam.search.report.page import run_report, write_report
from supersam.search.report.parts import (
    Cell,
    Page,
    Row,
    Section,
    Table,
    Text,
    render,
    render_drawing,
)
from supersam.search.sweep import read_progress, volume_curves
from supersam.space import read_space, subnet_cost
from tests.next_commands import read_next
from tests.search.trials import make_trial

NASTY = '<script>alert("x")</script>&'


class Tags(HTMLParser):
    """Tags of a page with their attributes; fails on one left open."""

    VOID = frozenset({"meta", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_startendtag(self, name, attributes):
        self.found.append((name, dict(attributes)))


def search_of(trained, folder, **changes):
    values = {
        "run": trained.folder,
        "out": folder,
        "trials": 24,
        "population": 8,
        "searcher": "random",
        "protocol": {"images": 2, "objects_per_image": 2},
        "cluster": {"cluster": "inline"},
        "device": "cpu",
    }
    return SearchRun.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def searched(trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("searches")
    folders = [place / "one", place / "two"]
    for seed, folder in enumerate(folders):
        fill(search_of(trained, folder, seed=seed))
    return folders


def fill(asked: SearchRun) -> None:
    """A finished search of random subnets whose mIoU grows with their size."""
    inputs = find_inputs(asked)
    prepare_folder(asked, inputs)
    space, rng = inputs.space, np.random.default_rng(asked.seed)
    specs = {"largest": space.largest(), "smallest": space.smallest()}
    references = {n: trial_of(n, spec, space, "reference", rng) for n, spec in specs.items()}
    names = [f"{asked.seed}-{i}" for i in range(asked.trials)]
    trials = [trial_of(n, space.sample(rng), space, "search", rng) for n in names]
    journal = Journal(asked.folder / JOURNAL_FILE)
    journal.append([*references.values(), *trials])
    journal.close()
    write_front(asked.folder, pareto_front(trials, asked.objectives))
    results = {n: trial.to_dict() for n, trial in references.items()}
    write_record(asked, inputs, {"finished": True, "references": results})


def trial_of(name, spec, space, stage, rng):
    cost = subnet_cost(spec, space.shape)
    miou = 0.4 + cost.params_m / 50 + rng.normal() * 0.01
    metrics = {"params_m": cost.params_m, "flops_g": cost.flops_g, "miou": miou}
    metrics |= {"miou_lo": miou - 0.02, "miou_hi": miou + 0.02}
    return make_trial(0, key=name, spec=spec, stage=stage, searcher=name, **metrics)


def test_the_page_holds_everything_and_needs_nothing(searched):
    path = write_report(searched[0], images=2)
    text = path.read_text(encoding="utf-8")
    seen = Tags(text)
    for name, attributes in seen.found:
        assert name not in ("link", "iframe")
        assert name != "script" or set(attributes) <= {"type"}  # its own, and none from elsewhere
        assert attributes.get("src", "data:").startswith("data:")
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"base64,[^\"]+", "", text))
    for part in ("Pareto front", "chosen subnets", "Masks of three", "dimension contributes"):
        assert part in text
    assert "random evaluated 26 subnets, the largest and the smallest among them" in text
    assert f"--subnet '{searched[0]}#knee'" in unescape(text)
    for reference in ("largest", "smallest"):
        assert reference in text
    files = {file.name for file in (searched[0] / "figures").iterdir()}
    assert {"front.svg", "trials.svg", "contributions.svg", "masks.png"} <= files
    assert any(name.startswith("subnet-") for name in files)


def test_the_page_says_what_the_prompts_alone_give_away(searched):
    text = write_report(searched[0], images=0).read_text()
    assert "Without looking at the image: " in text
    assert "the mean training mask in the box 0." in text
    assert "the filled box 0." in text


@pytest.mark.parametrize(("miou", "warned"), [(0.0, True), (1.0, False)])
def test_a_front_below_what_the_prompts_give_away_is_warned_of(searched, miou, warned):
    report = read_report(searched[0])
    front = [replace(t, metrics={**t.metrics, "miou": miou}) for t in report.front]
    looks = [text.look for text in describe_baselines(replace(report, front=front))]
    assert looks == (["note", "warning"] if warned else ["note"])


def test_writing_it_again_writes_the_same(searched):
    def written():
        page = write_report(searched[0], images=0)
        return {p.name: p.read_bytes() for p in (page, *page.parent.glob("figures/*.svg"))}

    first = written()
    assert "front.svg" in first
    assert written() == first


def test_a_page_ends_with_the_export_of_its_knee(searched, capsys):
    assert run_report(ReportRun(folders=(searched[0],), images=0)) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == str(searched[0] / "report.html")
    name, following = read_next(printed)
    assert (name, following.subnet) == ("export", f"{searched[0]}#knee")


def test_what_a_user_names_is_escaped(searched, tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    for file in searched[0].iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    record = json.loads((folder / "search.json").read_text())
    record["run"] = record["data"]["folders"][0] = NASTY
    record["data"]["seen_in_training"] = {"seen": True, "detail": NASTY}
    (folder / "search.json").write_text(json.dumps(record))
    text = write_report(folder, images=0).read_text()
    assert NASTY not in text
    assert text.count("&lt;script&gt;") >= 3
    assert "Training saw the evaluation data" in text
    parts = [Text(NASTY, code=NASTY), Table([NASTY], [Row([Cell(NASTY)], id='x" onclick="y')])]
    made = render(Page(NASTY, NASTY, [Section(NASTY, parts)]))
    assert NASTY not in made
    assert 'onclick="y' not in made
    Tags(made)


def test_a_folder_that_is_no_search_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no search\.json; name the folder of a search"):
        write_report(tmp_path)
    (tmp_path / "results" / "one").mkdir(parents=True)
    (tmp_path / "results" / "one" / "search.json").write_text("{")
    with pytest.raises(UserError, match="it is a run; its searches are .*/results/one"):
        write_report(tmp_path)
    with pytest.raises(UserError, match=r"search\.json is damaged .*; restore it"):
        write_report(tmp_path / "results" / "one")


def test_contributions_find_the_dimension_that_matters(tiny_space):
    """mIoU made of one layer's presence and one MLP's width: those two lead, in that order."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(120):
        spec = tiny_space.sample(rng)
        width = dict(zip(spec.layers, spec.mlp_widths, strict=True)).get(3, 0)
        miou = 0.5 + 0.1 * (1 in spec.layers) + 0.05 * width / 384 + rng.normal() * 0.002
        trials.append(make_trial(number, spec=spec, miou=miou))
    first, second, *others = contributions(tiny_space, trials)
    assert (first.dimension, first.change) == ("layer 1", "removed")
    assert first.miou == pytest.approx(-0.1, abs=0.02)
    assert first.interval[0] <= first.miou <= first.interval[1] < 0
    assert second.dimension == "MLP of layer 3"
    assert all(abs(each.miou) < 0.02 for each in others)
    assert all(each.params_m > 0 and each.flops_g > 0 for each in (first, second, *others))
    assert first.is_resolved
    for trials_too_few in (trials, trials[: fewest_trials(tiny_space) - 1]):
        found = contributions(tiny_space, trials_too_few)
        assert all(each.interval[0] <= each.miou <= each.interval[1] for each in found)
    assert not any(each.is_resolved for each in found)


def test_a_drawing_shows_every_layer(tiny_space):
    spec = tiny_space.smallest()
    text = render_drawing(draw_subnet(spec, tiny_space.shape, name=NASTY))
    assert "<script" not in text
    assert text.count("stroke-dasharray") == tiny_space.shape.depth - len(spec.layers)
    assert text.count("#d97706") == sum(spec.heads)


def test_a_comparison_ranks_searches_in_one_box(searched, tmp_path):
    searches = read_searches(searched)
    rows = write_comparison(tmp_path / "all", searches)
    text = (tmp_path / "all" / "report.html").read_text()
    Tags(text)
    assert [row.seed for row in rows] == [0, 1]
    assert "no constraint" in text
    curves = volume_curves(read_progress(searches))
    for row, curve in zip(rows, curves, strict=True):
        assert 0 < row.hypervolume <= 1.0001
        assert curve[-1] == row.hypervolume
        assert curve == sorted(curve)  # more trials never dominate less
        assert f"{row.hypervolume:.4f}" in text


def test_searches_in_folders_of_one_name_are_two_rows(trained, tmp_path):
    folders = [tmp_path / place / "search" for place in ("a", "b")]
    for trials, folder in zip((5, 9), folders, strict=True):
        fill(search_of(trained, folder, trials=trials))
    rows = write_comparison(tmp_path / "all", read_searches(folders))
    assert [(row.name, row.trials) for row in rows] == [("a/search", 5), ("b/search", 9)]


def test_names_of_folders_are_as_short_as_tells_them_apart():
    names = distinguishing_names([Path("x/a/search"), Path("y/a/search"), Path("other")])
    assert names == ["x/a/search", "y/a/search", "other"]
    with pytest.raises(UserError, match="named twice"):
        distinguishing_names([Path("x"), Path("y/../x")])


def test_searches_that_do_not_compare_are_refused(trained, searched, tmp_path):
    fill(search_of(trained, tmp_path / "other", protocol={"images": 1}))
    with pytest.raises(UserError, match="do not compare: they differ in protocol"):
        read_searches([searched[0], tmp_path / "other"])


def test_picks(searched):
    trials = [
        make_trial(i, flops_g=f, miou=m) for i, (f, m) in enumerate([(1, 0.5), (2, 0.68), (5, 0.7)])
    ]
    assert [pick(trials).key for pick in (cheapest, knee, best)] == ["0", "1", "2"]
    assert knee(trials[:1]).key == "0"
    report = read_report(searched[0])
    front = {trial.key for trial in read_front(searched[0])}
    assert {trial.key for trial in report.picks.values()} <= front
    assert report.space == read_space(report.search.run / "space.yaml", report.space.shape)


def charts_of(text):
    """The charts of a page, as its script reads them."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    return [json.loads(chart) for chart in found]


def test_dots_of_the_front_point_at_lines_of_the_table(searched):
    text = write_report(searched[0], images=0).read_text()
    ids = {attributes["id"] for name, attributes in Tags(text).found if attributes.get("id")}
    front, trials = charts_of(text)
    rows = {point["row"] for series in front["series"] for point in series["points"]}
    assert rows <= ids
    assert {"s0", "fixed-largest", "fixed-smallest"} <= rows
    picked = [point["label"] for point in front["series"][0]["points"] if point["label"]]
    assert {"cheapest", "best"} <= set(picked)
    assert sum(len(series["points"]) for series in trials["series"]) == 26


def test_what_was_selected_on_and_what_was_measured_have_names(trained, tmp_path):
    fill(search_of(trained, tmp_path / "s"))
    front = read_front(tmp_path / "s")
    text = write_report(tmp_path / "s", images=0).read_text()
    assert "The front is scored on the images that it was selected on, which flatters it" in text
    assert re.search(
        r"The knee keeps \d+% of mIoU with \d+% fewer parameters, on the images it", text
    )
    scores = {
        trial.spec.key(): FinalScore(0.4, (0.3, 0.5), -0.1, (-0.2, -0.05), 20, 60, 4)
        for trial in front
    }
    write_front(tmp_path / "s", front, scores)
    record = json.loads((tmp_path / "s" / "search.json").read_text())
    record["final"] = {"folders": ["other"], "share": None, "id": "x",
                       "seen_in_training": {"seen": False, "detail": "none"}}  # fmt: skip
    (tmp_path / "s" / "search.json").write_text(json.dumps(record))
    text = write_report(tmp_path / "s", images=0).read_text()
    assert "on images it was not selected on" in text
    assert "The knee keeps 80% of mIoU" in text
    assert "The final data are 4 sources alone" in text
    names = [series["name"] for series in charts_of(text)[0]["series"]]
    assert names[:2] == ["selected on", "measured on other images"]
    for word in ("mIoU, selected on", "mIoU, other images", "less largest", "-0.1000"):
        assert word in text


def test_a_comparison_lays_the_fronts_over_each_other(searched, tmp_path):
    write_comparison(tmp_path / "all", read_searches(searched))
    fronts, volumes = charts_of((tmp_path / "all" / "report.html").read_text())
    assert [series["name"] for series in fronts["series"]] == ["one", "two"]
    for series, folder in zip(fronts["series"], searched, strict=True):
        assert len(series["points"]) == len(read_front(folder))
    assert len(volumes["series"]) == 2
