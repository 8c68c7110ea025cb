"""Every YAML block of the pages passes its real loader, every command its real parser; nothing is left out silently."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from ruamel.yaml import YAML
from typer.core import TyperCommand

from shardyard.cli.main import COMMANDS, LazyCommand, app, run
from shardyard.data.build.spec import load_spec
from shardyard.data.tokenizers.spec import read_spec
from shardyard.errors import ShardyardError, UsageError
from shardyard.recipe.fields import all_paths
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sweep.load import is_sweep, load_sweep
from support.docs.pages import (
    GENERATED,
    PAGES,
    REPOSITORY,
    Block,
    Command,
    blocks,
    blocks_of,
    commands,
    commands_of,
    inline_code,
    page_name,
)
from support.docs.table import FOREIGN, PARSED, WALKED, extras, fate, reason

LANGUAGES = {"bash", "console", "yaml", "python", "toml", ""}
YAML_BLOCKS = [block for block in blocks() if block.language == "yaml"]
ALL = commands()
OURS = [command for command in ALL if command.words[0] == "shardyard"]
# A fragment without a mark is laid over this recipe; `<!-- over NAME -->` before the block names another.
BASE = "gpt/quickstart"
SPEC = "kind: bpe\ndescription: A part.\nspecial_tokens: {bos_token: <s>, eos_token: <s>}\nvocabulary: 8000\n"
# Names of files and of queries that look like fields of a recipe.
NO_FIELDS = re.compile(r"\.(json|py)$|^train\.loss$")
# Options of other programs that stand alone, by page.
OTHERS_OPTIONS = {
    "docs/benchmarks.md": {"--arms", "--trainer", "--pairs", "--block", "--warm-up"},
    "docs/checkpoints.md": {"--lora-modules", "--max-lora-rank"},
    "docs/gpu.md": {"--part", "--rehearse"},
    "cluster/cloud/README.md": {"--device"},
    "cluster/image/README.md": {"--shm-size", "--device", "--ulimit"},
    "cluster/slurm/README.md": {
        *("--cpus-per-task", "--gpus-per-node", "--mem", "--exclusive", "--time", "--signal"),
        *("--requeue", "--no-requeue"),
    },
}
OTHER_PROGRAMS = ("pip", "python", "kubectl", "scancel", "docker", "ulimit", "fi_info", "ray")


def kind_of(block: Block) -> str:
    """What a YAML block is, by the names at its top."""
    data = YAML(typ="safe").load(block.text)
    names = set(data) if isinstance(data, dict) else set()
    if {"recipe", "parameters"} <= names:
        return "sweep"
    if {"task", "dataset_path"} <= names:
        return "task"
    if {"sources", "output"} <= names:
        return "data set"
    if "kind" in names:
        return "tokenizer"
    if block.page == "docs/tokenizers.md" and names == {"train"}:
        return "part of a tokenizer"
    if "extends" in names or {"name", "model", "data", "train"} <= names:
        return "recipe"
    if names and names <= set(Recipe.model_fields):
        return "part of a recipe"
    if {"NetworkInterfaces"} <= names:
        return "part of a node of AWS"
    return "unknown"


def _recipe(block: Block, file: Path) -> None:
    file.write_text(block.text, encoding="utf-8")
    load_recipe(str(file))


def _part(block: Block, file: Path) -> None:
    base = block.mark.removeprefix("over ") if block.mark.startswith("over ") else BASE
    file.write_text(f"extends: {base}\nname: part\n{block.text}", encoding="utf-8")
    load_recipe(str(file))


def _sweep(block: Block, file: Path) -> None:
    file.write_text(block.text, encoding="utf-8")
    assert is_sweep(str(file))
    load_sweep(str(file))


def _tokenizer(block: Block, file: Path) -> None:
    file.write_text((SPEC if kind_of(block) == "part of a tokenizer" else "") + block.text, encoding="utf-8")
    read_spec(file)


def _data_set(block: Block, file: Path) -> None:
    file.write_text(block.text, encoding="utf-8")
    load_spec(file)


def _task(block: Block, file: Path) -> None:
    """The page shows the file of this name, with which test_harness.py runs lm-eval."""
    shown = YAML(typ="safe").load(block.text)
    assert shown == YAML(typ="safe").load(REPOSITORY / "docs" / "tasks" / f"{shown['task']}.yaml")


def _node(block: Block, file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(YAML(typ="safe").load(REPOSITORY / "cluster" / "cloud" / "aws.yaml"))
    for node in config["available_node_types"].values():
        node["node_config"] |= YAML(typ="safe").load(block.text)
    validate_config(config)


CHECKS: dict[str, Callable[[Block, Path], None]] = {
    "recipe": _recipe,
    "part of a recipe": _part,
    "sweep": _sweep,
    "data set": _data_set,
    "tokenizer": _tokenizer,
    "part of a tokenizer": _tokenizer,
    "task": _task,
    "part of a node of AWS": _node,
}


@pytest.fixture(autouse=True)
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that examples name are there."""
    for folder in ("corpus", "photos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "corpus/a.jsonl").write_text('{"body": "a text"}\n')
    pq.write_table(pa.table({"photo": [b"image"], "kind": [0]}), tmp_path / "photos/train-0.parquet")
    for block in blocks():
        if block.mark.endswith(".py"):
            (tmp_path / block.mark).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=str)
def test_yaml_passes_its_loader(block: Block, tmp_path: Path) -> None:
    kind = kind_of(block)
    assert kind in CHECKS, f"{block}: nobody knows what this YAML is; teach kind_of in this file"
    CHECKS[kind](block, tmp_path / "block.yaml")


def test_each_kind_of_yaml_is_there_and_can_fail(tmp_path: Path) -> None:
    kinds = Counter(map(kind_of, YAML_BLOCKS))
    assert set(kinds) == set(CHECKS)
    for kind in ("recipe", "part of a recipe", "sweep", "tokenizer", "part of a tokenizer", "task"):
        block = next(block for block in YAML_BLOCKS if kind_of(block) == kind)
        wrong = Block(block.page, block.line, "yaml", f"{block.text}nonsense: 1\n", block.mark)
        with pytest.raises((ShardyardError, AssertionError)):
            CHECKS[kind](wrong, tmp_path / "wrong.yaml")
    assert kind_of(Block("README.md", 1, "yaml", "nonsense: 1")) == "unknown"


def test_all_blocks_have_a_language_that_is_checked() -> None:
    assert {block.language for block in blocks()} == LANGUAGES
    terminal = re.compile(r"^(\$ |shardyard |make )", re.MULTILINE)
    assert [str(block) for block in blocks() if not block.language and terminal.search(block.text)] == []


@pytest.mark.parametrize("block", [block for block in blocks() if block.language == "python"], ids=str)
def test_python_can_be_parsed(block: Block) -> None:
    # An entry of a dictionary stands for itself.
    text = f"{{\n{block.text}}}" if re.search(r'^"\w+":', block.text, re.MULTILINE) else block.text
    ast.parse(text)


def _python(page: str) -> str:
    (block,) = [block for block in blocks() if block.language == "python" and block.page == page]
    return block.text


def test_the_script_that_writes_a_set_writes_it(tmp_path: Path) -> None:
    import pyarrow.parquet

    (tmp_path / "a.png").write_bytes(b"image")
    exec(_python("docs/data.md"), {"listed": [("a.png", number % 3) for number in range(128)]})
    written = pyarrow.parquet.ParquetFile("photos/train-0.parquet")
    assert (written.metadata.num_rows, written.num_row_groups) == (128, 64)
    assert written.read().column("photo")[0].as_py() == {"bytes": b"image", "path": "a.png"}


def test_the_loss_that_is_shown_is_what_it_says() -> None:
    import torch

    from shardyard.objectives import losses

    names = {**vars(losses)}
    exec(_python("docs/develop/losses.md"), names)
    predictions, targets = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([0.0, 1.0, 1.0])
    torch.testing.assert_close(names["log_cosh"](predictions, targets), (predictions - targets).cosh().log().sum())


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Commands are parsed to the end and not carried out; each leaves its context here."""
    contexts: list[Any] = []
    monkeypatch.setattr(TyperCommand, "invoke", lambda self, context: contexts.append(context))
    return contexts


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_passes_its_parser(
    command: Command, parsed: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [_example(_expanded(command, word)) for word in command.words[1:]]
    if words[0].startswith("-") or words[0] == "help":
        assert words[0] == "help" or words[0] in _options_of_all()
        return
    named = fate(command) == "named"
    # A mention may lack its arguments.
    code = run([*words, "--help"] if named else words)
    assert code == 0, f"{command}\n{capsys.readouterr().err}"
    if named:
        assert "Usage: " in capsys.readouterr().out
        return
    (context,) = parsed
    overrides = context.params.get("overrides")
    name = str(context.params.get("name") or "")
    if overrides and not command.fails and not (REPOSITORY / "recipes" / f"{name}.yaml").exists():
        name = BASE  # a copy of it, as the pages make them
    if overrides and not command.fails:
        load_sweep(name, overrides) if name.startswith("sweeps/") else load_recipe(name, overrides)


def _example(word: str) -> str:
    return {"N": "1", "STEP": "1"}.get(word, word)


def _expanded(command: Command, word: str) -> str:
    """`$NAME` as the page exports it."""
    if not word.startswith("$"):
        return word
    exported = (one.words[1].partition("=") for one in ALL if one.page == command.page and one.words[0] == "export")
    return {name: value for name, _, value in exported}[word[1:]]


def test_a_wrong_command_does_not_pass(parsed: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("launch x --untli 3", "lunch x", "cluster pu", "sample --step 1"):
        assert run(line.split()) == 2
    assert parsed == []
    with pytest.raises(UsageError):
        load_recipe(BASE, ["train.stpes=3"])


def test_every_command_is_run_or_it_is_said_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    fates = Counter(map(fate, ALL))
    forgotten = [str(command) for command in ALL if fate(command) == "forgotten"]
    assert forgotten == [], "tests/support/docs/table.py says of each command whether it is walked, and if not, why"
    with capsys.disabled():
        sys.stderr.write(f"\ncommands of the pages: {len(ALL)}, of these {dict(fates)}\n")
    assert fates["walked"] >= 30
    assert fates["parsed"] >= 50
    assert fates["beginning"] == 3
    shown = {(command.page, command.text) for command in ALL}
    assert [row for row in WALKED if row not in shown] == []
    used = {reason(command) for command in OURS if fate(command) == "parsed"}
    assert [why for _, why in PARSED if why not in used] == []
    assert set(FOREIGN) == {command.words[0] for command in ALL if fate(command) == "foreign"}


@pytest.mark.parametrize("command", [one for one in ALL if one.words[0] in ("make", "pip", "python")], ids=str)
def test_targets_extras_files_and_modules_are_there(command: Command) -> None:
    known = extras(REPOSITORY)
    _, first, *rest = command.words
    for listed in re.findall(r"EXTRAS=([\w,]+)|\.\[([\w,]+)\]", command.text):
        assert set("".join(listed).split(",")) <= known
    if command.words[0] == "make":
        assert re.search(rf"^{re.escape(first)}: .*## ", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    elif command.words[0] == "python":
        module = rest.pop(0).replace(".", "/") + ".py" if first == "-m" else ""
        source = REPOSITORY / "platform" / module if module else REPOSITORY / first
        text = source.read_text("utf-8")
        assert [word for word in rest if word.startswith("--") and word != "--help" and f'"{word}"' not in text] == []


@functools.cache
def _options_of_all() -> frozenset[str]:
    """All options of all commands."""
    root = typer.main.get_command(app)
    todo: list[Any] = [root, *(LazyCommand(*row).load() for row in COMMANDS)]
    found = {"--help", "-h"}
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values() if command is not root else ()
        for parameter in command.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return frozenset(found)


def test_options_and_fields_that_the_text_names_exist() -> None:
    known, fields = _options_of_all(), set(all_paths())
    wrong, seen = [], 0
    for page in (page for page in PAGES if page_name(page) not in GENERATED):
        others = OTHERS_OPTIONS.get(page_name(page), set())
        for line, code in inline_code(page.read_text(encoding="utf-8")):
            if code.split()[0] in OTHER_PROGRAMS:
                continue
            options = re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
            field = re.match(r"([a-z_]+)(\.[a-z_]+)+(?=$|[:= ])", code)
            seen += len(options)
            wrong += [f"{page_name(page)}:{line}: {option}" for option in options if option not in known | others]
            if field and field[1] in Recipe.model_fields and not NO_FIELDS.search(field[0]) and field[0] not in fields:
                wrong.append(f"{page_name(page)}:{line}: {field[0]}")
    assert wrong == []
    assert seen > 80


def test_the_table_of_commands() -> None:
    text = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", text.partition("\n## ")[0], re.M)
    names = {row[0] for row in COMMANDS}
    found: set[str] = set()
    for cell, _ in rows:
        items = [re.sub(r"…", "", item).split() for item in re.findall(r"`([^`]+)`", cell)]
        head = items[0][0]
        for item in items:
            words = item if item[0] in names else [head, *item]
            found.add(words[0])
            group = LazyCommand(*next(row for row in COMMANDS if row[0] == words[0])).load()
            if words[1:] and re.fullmatch("[a-z]+", words[1]):
                assert words[1] in group.commands, words
    assert found == names


def test_the_collector_sees_what_a_reader_sees() -> None:
    text = (
        "1. Do\n\n   ```bash\n   export A=b && shardyard launch x   # it trains\n   ```\n\n<!-- over moe/x -->\n"
        "```yaml\na: 1\n```\n\n```console\n$ shardyard wait latest; echo $?\nError: no\n```\n"
        "and `shardyard\nruns` and `shardyard` or `NCCL_DEBUG=INFO shardyard launch …`.\n"
    )
    first, second, third = blocks_of("p", text)
    assert (first.text, first.line, first.language) == ("export A=b && shardyard launch x   # it trains\n", 3, "bash")
    assert (second.mark, third.language) == ("over moe/x", "console")
    found = commands_of("p", text)
    assert [command.text for command in found if not command.inline] == [
        *("export A=b", "shardyard launch x", "shardyard wait latest", "echo $?"),
    ]
    assert [command.words for command in found if command.inline] == [
        *(["shardyard", "runs"], ["shardyard", "launch", "…"]),
    ]
    assert [command.text for command in found if command.fails] == ["shardyard wait latest", "echo $?"]
