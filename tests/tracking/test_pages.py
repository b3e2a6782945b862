"""What people see of a study in MLflow's own pages: a real server, a real browser, addresses as they are printed."""

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aae_ray.reporting import plots
from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.console import console_for
from aae_ray.reporting.html_report import OVERVIEW, REPORT, html_report, overview
from aae_ray.reporting.report import StudyReport, print_report
from aae_ray.search import events
from aae_ray.search.journal import Journal
from aae_ray.search.sampler import optuna_study
from aae_ray.tracking.sender import send_pending
from aae_ray.tracking.views import SAVED, server_of, views
from tests import browser
from tests.reporting.test_html_report import SPACE, a_study, page_of
from tests.search.histories import JSD, MSE, History, write_journal
from tests.tracking.little_study import client_of
from tests.tracking.test_outages import free_port, mlflow_server

COMPLETE = 3  # trials of that study
SETTLES_MS = 1000  # a table takes its columns one after another
FROM_THE_LEFT = """
    [...document.querySelectorAll("[role=columnheader]")]
        .sort((a, b) => a.getBoundingClientRect().x - b.getBoundingClientRect().x)
        .map(head => head.innerText.trim())
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.started() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def links(chromium: Any, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The addresses that a study has printed at its end, by what they show, once all of it is at a real server."""
    folder, port = tmp_path_factory.mktemp("pages"), free_port()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    with mlflow_server(folder, port):
        yield recorded(folder / "study", f"http://127.0.0.1:{port}")


def recorded(folder: Path, uri: str) -> Mapping[str, str]:
    """Send a whole study, with its pages and a model, and read what is printed of it."""
    folder.mkdir()
    history = a_study(folder, ended=False, tracking__uri=uri, tracking__experiment="aae/pages")
    write_pages(history, folder)
    (folder / "decoder").mkdir()
    (folder / "decoder" / "MLmodel").write_text("flavors: {}\nmodel_uuid: m\n")
    tags = {"aae.trial": "study-1/t0000/1", MSE: "0.1", JSD: "0.3"}
    request = {"name": "my decoder", "folder": "decoder", "tags": tags, "card": "a card", "description": "decoders"}
    request |= {"front": [], "constraints": [], "rule": "nearest_to_ideal"}
    history.add(events.Chosen(number=0, registration=request))
    history.add(events.StudyEnded())
    write_journal(folder, history.events)
    with closing(Journal.open(folder)) as journal:
        result = send_pending(journal)
    assert (result.left, result.parked) == (0, [])
    out = io.StringIO()
    report = StudyReport(folder, history.ledger, uri, result.registration, 0, [], None, links=result.links)
    print_report(console_for(out), report)
    printed = dict(re.findall(r"^(\w+) +(http\S+/#/\S+)$", out.getvalue(), re.MULTILINE))
    assert list(printed) == ["leaderboard", "front", "study", "model"], out.getvalue()
    return dict(result.links) | printed


def write_pages(history: History, folder: Path) -> None:
    ledger = history.ledger
    analysis = SearchAnalysis.of(ledger, history.events, ledger.trials[0])
    (folder / REPORT).write_text(html_report(ledger, analysis, folder, {}))
    plots.write_plots(optuna_study(ledger), ledger.current_plan, analysis, folder / plots.PLOTS)
    (folder / OVERVIEW).write_bytes(overview(ledger, folder) or b"")
    for name in (REPORT, plots.PLOTS, OVERVIEW):
        history.add(events.FileWritten(number=None, path=name, folder=None))


def look(page: Any, name: str) -> None:
    """A picture of the page, in the folder of AAE_RAY_SCREENSHOTS where it is set."""
    if folder := os.environ.get("AAE_RAY_SCREENSHOTS"):
        page.wait_for_timeout(1000)  # charts come into view
        page.screenshot(path=f"{folder}/{name}.png")


def names(page: Any, least: int = 1) -> list[str]:
    """The names of the runs in the table, from the top."""
    cells = page.locator("[role=row] a[href*='/runs/']")
    cells.nth(least - 1).wait_for()
    return [cell.partition("-")[0].strip() for cell in cells.all_inner_texts()]


@pytest.mark.slow
def test_the_leaderboard_opens_on_objectives_outcome_and_searched_settings(
    chromium: Any, links: Mapping[str, str]
) -> None:
    with browser.opened(chromium, links["leaderboard"]) as page:
        assert names(page, 6)[:COMPLETE] == ["t0000", "t0001", "t0002"]  # the best first
        page.get_by_role("columnheader", name="model.latent_dim").first.wait_for(state="attached")
        page.wait_for_timeout(SETTLES_MS)
        heads = dict.fromkeys(page.evaluate(FROM_THE_LEFT))  # the order of the elements is another one
        shown = [head for head in heads if head in (MSE, JSD, "aae.outcome", *SPACE)]
        assert shown[:4] == [MSE, JSD, "aae.outcome", "model.latent_dim"], heads
        text = page.inner_text("body")
        assert all(f"\n{outcome}\n" in text for outcome in ("complete", "stopped", "failed", "paused"))
        assert "Traces" not in page.locator("h1, h2").all_inner_texts()
        crosses = page.locator("[role=gridcell] svg[class*=danger], [role=gridcell] [style*=danger]")
        assert crosses.count() <= 1
        look(page, "leaderboard")


@pytest.mark.slow
def test_the_front_opens_on_a_scatter_of_the_complete_trials(chromium: Any, links: Mapping[str, str]) -> None:
    with browser.opened(chromium, links["front"]) as page:
        page.get_by_text(f"{MSE} vs. {JSD}").wait_for()
        page.locator(".scatterlayer .point").nth(COMPLETE - 1).wait_for()
        assert names(page, COMPLETE) == ["t0000", "t0001", "t0002"]
        look(page, "front")


@pytest.mark.slow
def test_parallel_coordinates_open_on_settings_and_objectives(chromium: Any, links: Mapping[str, str]) -> None:
    with browser.opened(chromium, links["parallel coordinates"]) as page:
        page.get_by_text("Parallel Coordinates").first.wait_for()
        page.locator(".parcoords, .parcoords-wrapper, [class*=parcoords]").first.wait_for(state="attached")
        look(page, "parallel")


@pytest.mark.slow
def test_samples_open_on_the_images_of_the_trials(chromium: Any, links: Mapping[str, str]) -> None:
    with browser.opened(chromium, links["samples"]) as page:
        page.locator("img[src*='images']").first.wait_for()
        look(page, "samples")


@pytest.mark.slow
def test_failures_are_those_that_broke_or_collapsed(chromium: Any, links: Mapping[str, str]) -> None:
    with browser.opened(chromium, links["failures"]) as page:
        assert sorted(names(page, 2)) == ["t0003", "t0004"]
        assert "code_collapse" in page.inner_text("body") and "a worker broke" in page.inner_text("body")
        look(page, "failures")


@pytest.mark.slow
def test_the_study_opens_on_its_front_and_its_best_values(chromium: Any, links: Mapping[str, str]) -> None:
    with browser.opened(chromium, links["study"]) as page:
        page.get_by_text("Pareto front:").wait_for()
        page.get_by_text("study/front_size").first.wait_for()
        text = page.inner_text("body")
        assert text.index("study/best_reconstruction_mse") < text.index("study/trials_complete")
        assert text.index("space.model.latent_dim") < text.index("data.name")  # what is searched comes first
        look(page, "study")


@pytest.mark.slow
def test_the_model_opens_on_its_version(chromium: Any, links: Mapping[str, str]) -> None:
    with browser.opened(chromium, links["model"]) as page:
        page.get_by_text("a card").first.wait_for()
        text = page.inner_text("body")
        assert "my decoder" in text and "champion" in text and "Version 1" in text
        look(page, "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mark"), [(REPORT, "svg .dot.front"), (plots.PLOTS, "#hypervolume .scatterlayer"), (OVERVIEW, "")]
)
def test_the_pages_of_a_study_are_shown_among_its_artifacts(
    chromium: Any, links: Mapping[str, str], name: str, mark: str
) -> None:
    address = links["study"].replace("?", f"/artifacts/{name}?")
    with browser.opened(chromium, address) as page:
        if mark:  # a frame that may load nothing beside it
            page.frame_locator("iframe").locator(mark).first.wait_for()
        else:
            page.locator("img[src^=blob], .js-plotly-plot image").first.wait_for()
        look(page, name)


@pytest.mark.slow
def test_views_are_saved_once_a_study_and_in_the_menu(chromium: Any, links: Mapping[str, str]) -> None:
    server, experiment = re.findall(r"^(.*)/#/experiments/(\w+)/", links["study"])[0]
    tags = client_of(server).get_experiment(experiment).tags
    assert sorted(key.rpartition("-")[2] for key in tags if key.startswith(SAVED)) == [
        "coordinates", "failures", "front", "leaderboard", "samples",
    ]  # fmt: skip
    with browser.opened(chromium, f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning") as page:
        page.get_by_role("button", name="Views").click()
        page.get_by_text("leaderboard of study-1").first.wait_for()
        look(page, "menu")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_report_fits_wide_and_narrow_screens(chromium: Any, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / REPORT).write_text(page_of(a_study(tmp_path), tmp_path))
    with browser.opened(chromium, (tmp_path / REPORT).as_uri(), width=width, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        letters = page.evaluate(
            "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).filter(h => h > 0)"
        )
        assert min(letters) > 8  # pixels, to be read on a phone
        look(page, f"report-{width}")


# ------------------------------------------------------------------------------------------------- without a browser


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("sqlite:////home/ann/mlflow.db", "http://localhost:5000"),
        ("postgresql://ann:secret@host/db", "http://localhost:5000"),
        ("https://ann:secret@host/mlflow/", "https://host/mlflow"),
        ("databricks", None),
    ],
)
def test_addresses_hold_at_the_server_or_where_the_command_above_them_starts_one(uri: str, server: str | None) -> None:
    assert server_of(uri) == server


def test_views_of_two_studies_have_keys_of_their_own_that_mlflow_takes() -> None:
    plan = History().plan
    keys = {view.tag(0)[0] for name in ("a", "b 'ü' ?", "c" * 300) for view in views(name, plan).values()}
    assert len(keys) == 15 and all(re.fullmatch(r"[\w.-]{1,100}", key) for key in keys)


def test_a_view_of_a_large_space_fits_into_a_tag() -> None:
    history = History(study__objectives=(MSE, JSD, "val/scaled_sliced_wasserstein"))
    tags = [view.tag(1.5) for view in views("s" * 200, history.plan).values()]
    assert all(len(value) < 20_000 for _, value in tags)
