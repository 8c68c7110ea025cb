"""Which documents repeat another: against all pairs compared one by one, and the probabilities of MinHash."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from shardyard.data.build.duplicates import find_duplicates, table_type
from shardyard.data.build.hashes import exact_hash, hasher
from shardyard.data.filters.steps import make_step
from shardyard.errors import UsageError
from shardyard.recipe.sections.filters import ExactDuplicates, Step


def files_of(folder: Path, hashes: Sequence[Sequence[int]], files: int) -> list[Path]:
    """Hashes of documents, whose keys are their numbers times ten, in some files."""
    table = np.empty(len(hashes), table_type(len(hashes[0])))
    table["key"], table["hashes"] = np.arange(len(hashes)) * 10, hashes
    paths = [folder / f"{number}.npy" for number in range(files)]
    for path, part in zip(paths, np.array_split(table, files), strict=True):
        np.save(path, part)
    return paths


def by_all_pairs(hashes: Sequence[Sequence[int]]) -> dict[int, int]:
    """Removed key → kept key, by spreading the smallest number along all pairs with an equal hash."""
    root = list(range(len(hashes)))
    changed = True
    while changed:
        changed = False
        for a in range(len(hashes)):
            for b in range(len(hashes)):
                alike = any(x == y for x, y in zip(hashes[a], hashes[b], strict=True))
                if alike and root[a] < root[b]:
                    root[b], changed = root[a], True
    return {number * 10: one * 10 for number, one in enumerate(root) if one != number}


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(("files", "sorted_bytes"), [(1, 1 << 28), (7, 1 << 28), (3, 64)])
def test_clusters_are_those_of_all_pairs(tmp_path: Path, columns: int, files: int, sorted_bytes: int) -> None:
    generator = random.Random(columns)
    # Large numbers, which a division that is not of 64 bits would confuse.
    hashes = [[2**63 + generator.randrange(45) * 2**32 for _ in range(columns)] for _ in range(60)]
    found = find_duplicates(files_of(tmp_path, hashes, files), columns, sorted_bytes)
    expected = by_all_pairs(hashes)
    assert dict(zip(found.removed.tolist(), found.kept.tolist(), strict=True)) == expected
    assert found.clusters == len(set(expected.values()))
    assert expected


def test_no_documents_have_no_duplicates(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.empty(0, table_type(2)))
    assert find_duplicates([tmp_path / "0.npy"], 2).removed.tolist() == []


@pytest.mark.parametrize(
    ("compare", "other", "same"),
    [
        ("normalized", "the  CAT sat\n on\tthe mat ", True),
        ("normalized", "the cat sat on the mat.", False),
        ("normalized", "the cat sat on themat", False),
        ("exact", "The cat sat on the mat", True),
        ("exact", "the cat sat on the mat", False),
    ],
)
def test_exact_hashes(compare: str, other: str, same: bool) -> None:
    step = ExactDuplicates.model_validate({"compare": compare})
    assert (exact_hash(step, "The cat sat on the mat") == exact_hash(step, other)).all() == same


def near(**options: int) -> Callable[[str], np.ndarray]:
    pytest.importorskip("rensa", reason="the extra clean")
    return hasher(Step.model_validate({"near_duplicates": options}))[1]


def test_near_hashes_ignore_case_punctuation_and_order_of_equal_ngrams() -> None:
    make = near()
    text = " ".join(f"word{n}" for n in range(30))
    assert (make(text) == make(text.upper().replace(" ", ", "))).all()
    assert len(make(text)) == 14
    assert not (make(text) == make(" ".join(f"other{n}" for n in range(30)))).any()
    # Without words only the same text is alike.
    assert (make("?!") == make("?!")).all()
    assert not (make("?!") == make("!!")).any()
    # Shorter than an n-gram: all of it.
    assert (make("a b") == make("A b.")).all()


@pytest.mark.parametrize(
    ("module", "step"), [("rensa", {"near_duplicates": None}), ("lingua", {"language": {"keep": ["en"]}})]
)
def test_a_library_that_is_missing_is_named_with_the_command(
    module: str, step: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    made = Step.model_validate(step)
    with pytest.raises(UsageError, match=rf"the step {made.name} needs {module}, which is not installed: `pip install"):
        hasher(made) if made.compares else make_step(made, lambda _: ())


@pytest.mark.parametrize("shared", [0.5, 0.75, 0.9])
def test_near_duplicates_are_found_as_often_as_minhash_says(shared: float) -> None:
    """Sets of words with the Jaccard index s: 1 − (1 − s^rows)^bands of 400 pairs, within 4 standard deviations."""
    bands, rows, pairs, size = 6, 4, 400, 90
    make = near(ngram=1, bands=bands, rows=rows)
    common = round(2 * size * shared / (1 + shared))  # |A∩B| / |A∪B| = common / (2·size − common)
    jaccard = common / (2 * size - common)
    found = 0
    for pair in range(pairs):
        both = [f"p{pair}c{n}" for n in range(common)]
        one, two = (" ".join([*both, *(f"p{pair}{side}{n}" for n in range(size - common))]) for side in "ab")
        found += bool((make(one) == make(two)).any())
    expected = 1 - (1 - jaccard**rows) ** bands
    assert abs(found - pairs * expected) <= 4 * (pairs * expected * (1 - expected)) ** 0.5 + 1
