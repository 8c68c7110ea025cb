"""`world_size` means the number of all ranks: whoever means the data-parallel size asks the mesh for it."""

from __future__ import annotations

import re

import pytest

from support.module_graph import PACKAGE

# Where ranks meet, where the mesh is made of them, and where their number is reported. Anything else names an axis.
MAY_SAY_IT = {
    "ranks meet": (
        "engine/mesh.py",
        "engine/checkpoint/convert/ranks.py",
        "engine/world.py",
        "launch/ray/places.py",
        "launch/ray/process_group.py",
        "launch/ray/rank_actor.py",
        "launch/ray/worker.py",
        "launch/run/local.py",
    ),
    "a checkpoint has a file of each rank": (
        "engine/checkpoint/checkpoint.py",
        "engine/checkpoint/files.py",
        "engine/inference/load.py",
        "recipe/mesh.py",
    ),
    "run.json and events report it": (
        "engine/inference/run_ledger.py",
        "engine/session.py",
        "launch/run/driver.py",
        "launch/run/carry_out.py",
        "launch/run/create.py",
        "launch/run/progress.py",
        "tracking/run/events.py",
        "tracking/run/folder.py",
        "tracking/run/info.py",
        "tracking/run/summary.py",
        "tracking/wandb/importing.py",
    ),
    "people read it": (
        "cli/commands/jobs.py",
        "cli/commands/runs.py",
        "cli/view/live.py",
        "dashboard/index/ingest.py",
        "dashboard/index/listing.py",
        "dashboard/index/query_sql.py",
        "dashboard/index/store.py",
        "dashboard/web/details.py",
        "launch/describe.py",
        "recipe/synonyms.py",
    ),
}
ALLOWED = {name for names in MAY_SAY_IT.values() for name in names}
# Of torch.distributed, also without a group: it would mean all ranks.
SAYS_IT = re.compile(r"\b(get_)?world_size\b|\.get_rank\(\)")


def saying(source: str) -> list[int]:
    """Lines that name the number of all ranks, or ask torch for a rank's place among them."""
    return [number for number, line in enumerate(source.splitlines(), 1) if SAYS_IT.search(line)]


def test_few_files_name_the_number_of_all_ranks() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := saying(path.read_text(encoding="utf-8")))
    }
    others = [f"{name}:{lines[0]}" for name, lines in found.items() if name not in ALLOWED]
    assert not others, f"ask the mesh for the axis that is meant (recipe/mesh.py, engine/mesh.py): {', '.join(others)}"
    assert found.keys() == ALLOWED, f"no longer needed here: {', '.join(sorted(ALLOWED - found.keys()))}"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("def f(world_size: int):", True),
        ("size = distributed.get_world_size()", True),
        ("if torch.distributed.get_rank() == 0:", True),
        ("rank = group.rank()", False),
        ("size = mesh.data.size", False),
        ("local_world_size = 2", False),
    ],
)
def test_every_way_of_saying_it_is_found(line: str, says: bool) -> None:
    assert bool(saying(line)) is says
