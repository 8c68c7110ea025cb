"""A launch over conversations of which many cannot be used: left out or repaired, counted, told, and named."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from support.chat.cases import answer, system, user
from support.cli import Command
from support.objectives import instruction
from support.tiny import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

# It refuses what many refuse: a system message, and roles that do not alternate.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[I]' + m.content + '[/I]' if m.role == 'user' else m.content + eos_token }}{% endfor %}"
)
Talk = Sequence[Mapping[str, object]]
GOOD: Sequence[Talk] = [
    *([user(f"say {word}"), answer(word)] for word in WORDS[:12]),
    # Keys that other rows do not have, and content in parts.
    [user("say key"), answer("key", weight=1, name="who", reasoning_content="why", tool_calls=None)],
    [user([{"type": "text", "text": "say\npart"}]), answer([{"type": "text", "text": "part"}])],
]
REPAIRABLE: Mapping[str, Talk] = {
    "assistant first": [answer("welcome"), user("hi"), answer("yes")],
    "roles that do not alternate": [user("a"), user("b"), answer("c")],
    "an empty turn": [user("a"), answer(""), user("b"), answer("c")],
    "a system message": [system("be kind"), user("a"), answer("c")],
}
HOPELESS: Mapping[str, Talk] = {
    "null content": [user("a"), answer(None)],
    "no content": [user("a"), {"role": "assistant"}],
    "no role": [{"content": "a"}, answer("b")],
    "no answer": [user("a")],
}
NO_ROOM: Talk = [user("lorem ipsum " * 20), answer("ok")]
NUM_BAD = len(REPAIRABLE) + len(HOPELESS) + 1
MIXED: Sequence[Talk | None] = [*GOOD, *REPAIRABLE.values(), *HOPELESS.values(), NO_ROOM, None]


def write(path: Path, talks: Sequence[Talk | None]) -> Path:
    """JSON Lines; None is a row without a conversation."""
    rows = [{"messages": talk} if talk is not None else {"note": "nothing"} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(folder: Path, on_error: str) -> Path:
    fields = instruction.recipe_fields(write(folder / "talk.jsonl", MIXED))
    fields["data"] |= {"on_error": on_error, "streams": 1, "train": [{"path": str(folder / "talk.jsonl")}]}
    fields["data"]["train"][0]["filters"] = [{"regex": {"pattern": "say key"}}]
    fields["data"] |= {"validation": [{"path": str(write(folder / "held.jsonl", MIXED))}]}
    fields |= {"chat": {"template": STRICT}, "cluster": {"workers": 1}}
    fields["train"] |= {"steps": 4}
    fields["evaluate"] = {"every": 4, "rows": 99}
    file = folder / f"{on_error}.yaml"
    with file.open("w") as stream:
        YAML(typ="safe").dump(fields, stream)
    return file


def launched(folder: Path, on_error: str, *options: str) -> tuple[Command, int, str]:
    with Command("launch", recipe(folder, on_error), *options, runs=folder / on_error) as command:
        code, output = command.finish()
    return command, code, " ".join(output.split())


def test_bad_rows_are_left_out_counted_and_told(tmp_path: Path) -> None:
    command, code, output = launched(tmp_path, "skip")
    assert code == 0, output
    assert command.info()["state"] == "finished"
    (read,) = command.events("data")
    # Four steps are two passes and the beginning of a third, and each counts them again.
    assert 2 * NUM_BAD <= read["unusable"] < 3 * NUM_BAD
    assert 2 <= read["without_target"] <= 3
    assert "in 3 passes over the data" in output
    (filtered,) = read["filtered"].items()
    assert filtered[0] == "regex: matches say key"
    assert 2 <= filtered[1] <= 3
    assert f"{filtered[1]} rows removed by filters" in output
    assert 0 < command.metrics()[-1]["data/filtered"] < 0.2
    assert (read["repaired"], read["empty_streams"]) == (0, 0)
    assert len(read["named"]) == 5
    assert all(re.match(r"talk\.jsonl, row \d+: .", name) for name in read["named"])
    assert (
        f"{read['unusable']} unusable rows left out, {read['without_target']} rows without a target left out" in output
    )
    assert read["named"][0] in output
    # The evaluation measured the good rows as they are measured alone.
    write(tmp_path / "held.jsonl", GOOD)
    with Command("eval", "latest", "--json", runs=command.runs) as measured:
        code, alone = measured.finish()
    assert code == 0, alone
    found: dict[str, Any] = json.loads(alone[alone.index("{") :])
    assert found["rows"] == len(GOOD)
    assert found["loss"] == pytest.approx(command.metrics()[-1]["eval/validation/loss"], rel=1e-6)


def test_bad_rows_are_repaired_where_that_helps(tmp_path: Path) -> None:
    command, code, output = launched(tmp_path, "repair", "--local")
    assert code == 0, output
    assert command.info()["state"] == "finished"
    (read,) = command.events("data")
    assert read["repaired"] >= len(REPAIRABLE)
    assert read["unusable"] >= len(HOPELESS) + 1
    assert f"{read['repaired']} rows repaired" in output


def test_stop_names_file_and_row(tmp_path: Path) -> None:
    command, code, output = launched(tmp_path, "stop", "--local")
    assert code == 1, output
    bad = [row for row, talk in enumerate(MIXED, start=1) if talk not in GOOD and talk is not NO_ROOM]
    named = re.search(r"(?:talk|held)\.jsonl, row (\d+): .*data\.on_error", output)
    assert named, output
    assert int(named[1]) in bad
    assert command.info()["state"] == "failed"
