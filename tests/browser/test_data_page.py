"""The page of a recipe's data, before a launch: from the recipe to its rows, with pictures, sound and masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Dashboard, Visiting, start_dashboard, stop_dashboard, until
from browser.test_pages import faults, settle, shoot
from shardyard.data.datasets.store import data_root
from shardyard.data.index.offsets import cache_folder

pytestmark = pytest.mark.slow

FIELDS = "One field a line, as path=value"


@pytest.fixture(scope="module")
def beside_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard that has the corpora and prepared data sets of this machine."""
    top = tmp_path_factory.mktemp("beside-data")
    (top / "runs").mkdir()
    started = start_dashboard(top / "runs", top, SHARDYARD_CACHE=str(cache_folder()), SHARDYARD_DATA=str(data_root()))
    yield started
    stop_dashboard(started)


def look(page: Page, *overrides: str) -> None:
    """From the recipe to its data."""
    page.get_by_label(FIELDS).fill("\n".join(overrides))
    button = page.get_by_role("button", name="Look at the data")
    expect(button).to_be_enabled()
    button.click()
    page.wait_for_selector(".data-rows, .notice-box")
    settle(page)


def test_from_the_recipe_to_its_rows(visiting: Visiting, beside_data: Dashboard, tmp_path: Path) -> None:
    visit = visiting(at=beside_data)
    page = visit.open("submit?recipe=gpt/quickstart", ".plan .facts")
    look(page, "data.sequence_length=128")
    expect(page.get_by_role("heading", name="Data of gpt/quickstart")).to_be_visible()
    expect(page.locator(".data-rows > li")).to_have_count(6)
    expect(page.locator(".data-rows mark.trained").first).to_be_visible()
    expect(page.locator(".tiles")).to_contain_text("Tokens a second")
    table = page.get_by_role("table")
    expect(table).to_contain_text("python-docs")
    expect(table).to_contain_text("70.0 %")
    shoot(page, "data-text", tmp_path, full_page=True)
    assert faults(visit, "data", axe=True) == []
    page.get_by_label("Rows shown").select_option("3")
    expect(page.locator(".data-rows > li")).to_have_count(3)
    expect(page.get_by_text("shardyard data inspect gpt/quickstart -s data.sequence_length=128")).to_be_visible()
    page.get_by_role("link", name="Back to the recipe").click()
    expect(page.get_by_label(FIELDS)).to_have_value("data.sequence_length=128")
    visit.check()


@pytest.mark.parametrize(("size", "theme"), [("desktop", "dark"), ("phone", "light")])
def test_masks_pictures_and_sound(
    visiting: Visiting, beside_data: Dashboard, tmp_path: Path, size: str, theme: str
) -> None:
    visit = visiting(size, theme, at=beside_data)
    wrong = []
    for recipe, what in (
        ("finetune/sft-docstrings", "mark.trained"),
        ("multimodal/clip-emoji", ".pictures img"),
        ("speech/prompts-en", "audio"),
    ):
        page = visit.open(f"submit?recipe={recipe}", ".plan .facts")
        look(page)
        expect(page.locator(f".data-rows {what}").first).to_be_visible()
        wrong += faults(visit, recipe, axe=True)
        shoot(page, f"data-{recipe.partition('/')[2]}-{size}-{theme}", tmp_path, full_page=True)
    until(page, "document.querySelector('audio').duration > 0.4")
    assert wrong == []
    visit.check()


def test_an_address_alone_reads_nothing(visiting: Visiting, beside_data: Dashboard) -> None:
    visit = visiting(at=beside_data)
    page = visit.open("data?recipe=gpt/quickstart", "h1")
    expect(page.get_by_role("button", name="Read the data")).to_be_visible()
    assert not [url for url in visit.requests if "/api/recipes/data" in url]
    expect(page.locator(".data-rows")).to_have_count(0)
