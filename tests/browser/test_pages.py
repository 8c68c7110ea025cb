"""Every page in Chromium, on a desktop in light and dark and on a phone: there, complete, quiet and accessible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, TimeoutError

from browser.conftest import Visit, Visiting, until
from shardyard.tracking.run.folder import RunFolder

pytestmark = pytest.mark.slow

Gallery = tuple[Path, dict[str, RunFolder]]
CHART = ".plot[data-drawn]"
# Nothing moves, and the page has painted and found time for what it had put off.
# A page that is not drawn has no idle periods, and would never answer without the time limit.
IDLE = """() => new Promise((done) => requestIdleCallback(() => done(document.getAnimations().every(
  (one) => one.playState !== 'running' || one.effect.getComputedTiming().iterations === Infinity)), {timeout: 5000}))"""


def places(gallery: Gallery) -> dict[str, tuple[str, str]]:
    """Each page: its address after #/ and what shows that it is there."""
    runs_dir, runs = gallery
    live, failed, experts, garbled = (runs[name].id for name in ("live", "failed", "experts", "garbled"))
    many = ",".join(run.id for name, run in runs.items() if name.startswith("gpt-lr"))
    sweep = next((runs_dir / "sweeps").iterdir()).name
    return {
        "runs": ("runs", ".run-name"),
        "runs-grouped": ("runs?group=recipe&columns=state,loss,train.lr,recipe.optimizer.lr,tags", ".run-name"),
        "runs-query-error": ("runs?query=eval.lss < 3", "#query-error:not([hidden])"),
        "run-overview": (f"run/{live}", CHART),
        "run-gpus": (f"run/{experts}", CHART),
        "run-failed": (f"run/{failed}", CHART),
        "run-troubled": (f"run/{runs['troubled'].id}", ".profiled"),
        "run-marks": (f"run/{runs['troubled'].id}?tab=curves", ".mark-key"),
        "run-curves": (f"run/{experts}?tab=curves", CHART),
        "run-recipe": (f"run/{failed}?tab=recipe", ".code"),
        "run-logs": (f"run/{failed}?tab=logs&rank=1", ".first-errors"),
        "run-checkpoints": (f"run/{garbled}?tab=checkpoints", "table"),
        "run-samples": (f"run/{runs['hostile'].id}?tab=samples", ".samples"),
        "run-experts": (f"run/{experts}?tab=experts", ".heat"),
        "run-system": (f"run/{experts}?tab=system", CHART),
        "run-damaged": (f"run/{runs['cut'].id}", ".warning"),
        "run-missing": ("run/nothing-like-this", ".notice-box"),
        "compare": (f"compare?runs={many}", CHART),
        "compare-bands": (f"compare?runs={many}&bands=1&only=train/loss", CHART),
        "compare-recipes": (f"compare?runs={many}&tab=recipes", "table"),
        "compare-results": (f"compare?runs={many}&tab=results", "table"),
        "compare-relations": (f"compare?runs={many}&tab=relations", CHART),
        "compare-scaling": (f"compare?runs={many}&tab=scaling", CHART),
        "compare-empty": ("compare", ".notice-box"),
        "sweeps": ("sweeps", "table"),
        "sweep": (f"sweeps/{sweep}", CHART),
        "jobs": ("jobs", ".notice-box"),
        "submit": ("submit?recipe=gpt/quickstart", ".plan .facts"),
        "nowhere": ("nowhere", ".notice-box"),
    }


def shoot(page: Page, name: str, otherwise: Path, *, full_page: bool = False) -> None:
    """An image of the page, to be looked at, in the folder that SHARDYARD_SCREENSHOTS names."""
    folder = Path(os.environ.get("SHARDYARD_SCREENSHOTS", otherwise))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=full_page)


def settle(page: Page) -> None:
    """Until no skeleton and no empty chart is left in sight."""
    until(page, "!document.querySelector('.skeleton, .bone') && !document.querySelector('.stale')")
    until(page, IDLE)


@pytest.mark.parametrize(
    # What is wide is seen by the phone in the light, and what is dark by the desktop.
    ("size", "theme"),
    [("desktop", "light"), ("desktop", "dark"), ("phone", "light")],
)
def test_every_page_is_complete_quiet_and_accessible(
    size: str, theme: str, visiting: Visiting, gallery: Gallery, tmp_path: Path
) -> None:
    visit = visiting(size, theme)
    wrong: list[str] = []
    for name, (place, ready) in places(gallery).items():
        try:
            settle(visit.open(place, ready))
        except (TimeoutError, AssertionError) as error:
            # All pages are seen before the test fails, so that one run tells everything.
            wrong.append(f"{name}: not there in time: {str(error).splitlines()[0]}")
        shoot(visit.page, f"{name}-{size}-{theme}", tmp_path, full_page=size == "phone")
        wrong += [f"{name}: {finding}" for finding in faults(visit, name, axe=True)]
    assert wrong == []
    visit.check()


def faults(visit: Visit, name: str, *, axe: bool) -> list[str]:
    """Serious findings of axe, content that is wider than the window, and complaints that the place explains away."""
    page = visit.page
    found = Axe().run(page).response["violations"] if axe else []
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    listed = [f"{one['id']} at {[node['target'] for node in one['nodes'][:3]]}" for one in serious]
    if page.evaluate("document.documentElement.scrollWidth > innerWidth + 1"):
        listed.append("wider than the window")
    if page.evaluate("document.querySelectorAll('h1').length") != 1 and "missing" not in name and name != "nowhere":
        listed.append("not exactly one h1")
    # Chromium says each answer that is no success in the console; these are the point of their places.
    if name in ("runs-query-error", "run-missing"):
        visit.complaints[:] = [text for text in visit.complaints if "Failed to load resource" not in text]
    return listed
