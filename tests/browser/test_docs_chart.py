"""docs/hooks.md, "Adding a metric with its chart", carried out: a file and a line of the recipe give a chart."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect
from ruamel.yaml import YAML

from browser.conftest import Dashboard, Visiting, until
from support.cli import Command, write_recipe
from support.docs.pages import REPOSITORY, blocks_of
from support.tiny import write_corpus

pytestmark = pytest.mark.slow

PAGE = "docs/hooks.md"
CHART = '[data-metric="weights/norm"]'
HEADING = "## Adding a metric with its chart"


@pytest.fixture
def trained(dashboard: Dashboard, tmp_path: Path) -> Command:
    """A run of four steps, trained with what the section says and nothing else."""
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    section = HEADING + text.partition(HEADING)[2].partition("\n## ")[0]
    code, recipe = blocks_of(PAGE, section)
    assert (code.language, recipe.language) == ("python", "yaml")
    assert code.mark == "weight_norm.py"
    (tmp_path / code.mark).write_text(code.text, encoding="utf-8")
    hooks = YAML(typ="safe").load(recipe.text)["hooks"]
    sections = {"train": {"steps": 4, "precision": "fp32"}, "schedule": {"warmup": 1}, "cluster": {"workers": 1}}
    file = write_recipe(tmp_path, write_corpus(tmp_path), name="charted", hooks=hooks, **sections)
    with Command("launch", file, "--local", runs=dashboard.runs_dir, cwd=tmp_path) as command:
        exit_code, output = command.finish()
    assert exit_code == 0, output
    return command


def test_the_metric_of_the_page_has_a_chart_in_a_group_of_its_own(visiting: Visiting, trained: Command) -> None:
    (run,) = trained.runs.glob("charted-*")
    visit = visiting()
    # A dashboard that nobody watches finds a new run after some seconds.
    visit.open("runs", '.run-name:has-text("charted")')
    page = visit.open(f"run/{run.name}?tab=curves", CHART)
    # A chart is drawn once it comes into sight.
    page.locator(CHART).scroll_into_view_if_needed()
    page.wait_for_selector(f"{CHART} .plot[data-drawn]")
    trace = "document.querySelector('[data-metric=\"weights/norm\"] .plot').data.at(-1)"
    until(page, f"Array.from({trace}.x).join() === '2,4'")
    assert all(0 < value < 1000 for value in page.evaluate(f"Array.from({trace}.y)"))
    expect(page.get_by_role("heading", name="weights", exact=True)).to_be_visible()
    visit.check()
