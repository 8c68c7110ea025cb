"""Launching, watching, stopping and resuming through the command line, on real Ray workers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from shardyard.data.ledger.record import read_ledger
from shardyard.data.stream import held_out
from shardyard.engine.inference.load import load_trained
from shardyard.engine.inference.step_documents import documents_of_step
from shardyard.tracking.run.folder import RunFolder
from support.cli import Command, write_recipe
from support.hold import held_by
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.slow

# Long enough for several things to happen to it between two checkpoints, also where the test gets no CPU for a while.
STEPS, EVERY = 160, 20
LONG: dict[str, Any] = {"train": {"steps": STEPS}, "checkpoint": {"every": EVERY}, "evaluate": {"every": EVERY}}
NOISE = re.compile(r"error|traceback|warn|deprecat|raylet|INFO", re.IGNORECASE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, str]:
    """A finished run of two Ray workers with W&B offline, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, corpus, tracking={"wandb": {"mode": "offline"}}, **LONG)
    with Command("launch", recipe, runs=folder / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    return command, output


def weights(command: Command) -> dict[str, torch.Tensor]:
    return load_file(command.folder / "final" / "model.safetensors")


def assert_same_weights(ours: Command, theirs: Command) -> None:
    expected = weights(theirs)
    for name, tensor in weights(ours).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_tells_what_matters_and_nothing_else(undisturbed: tuple[Command, str]) -> None:
    command, output = undisturbed
    assert not NOISE.search(output), output
    assert len(output.splitlines()) < 50
    for word in ("step", "loss", "run folder", f"shardyard sample {command.folder} ", "wandb sync"):
        assert word in output, output
    assert "resume" not in output  # of a run that has finished
    assert command.info()["state"] == "finished"
    # The recipe leaves the precision to the device; what it became is said, and kept for whatever machine resumes.
    said = re.search(r"precision (bf16|fp32): this CPU has", output)
    assert said, output
    assert f"\n  precision: {said[1]}\n" in (command.folder / "resolved.yaml").read_text()
    assert "precision" not in (command.folder / "recipe.yaml").read_text()


def test_the_run_folder_is_whole(undisturbed: tuple[Command, str]) -> None:
    folder = undisturbed[0].folder
    records = ("metrics.jsonl", "events.jsonl", "samples.jsonl", "held-out.safetensors")
    for name in ("recipe.yaml", "resolved.yaml", "run.json", *records):
        assert (folder / name).stat().st_size > 0, name
    assert [path.name for path in sorted((folder / "logs").glob("*.log"))] == ["driver.log", "rank-0.log", "rank-1.log"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-00000120",
        "step-00000140",
        "step-00000160",
    ]
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    # What was read, and that nothing was left out.
    assert undisturbed[0].info()["data"]["streams"] == 4
    # What its plan predicts, to be compared with what it measures; of CPUs no rate is known.
    assert list(undisturbed[0].info()["predicted"]) == ["device_bytes"]
    (counts,) = undisturbed[0].events("data")
    assert len(counts["ranks"]) == 2
    assert counts["skipped"] == 0
    assert counts["ranks"][0]["sources"][0]["documents"] > 0
    steps = [line["step"] for line in undisturbed[0].metrics()]
    assert steps == list(range(1, STEPS + 1))


def test_an_evaluation_afterwards_reads_the_held_out_rows_of_the_run(
    undisturbed: tuple[Command, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(undisturbed[0].folder)
    written = folder.held_out.read_bytes()
    monkeypatch.setattr(held_out, "Stream", None)  # No row is made.
    result = load_trained(folder).evaluate()
    assert result["loss"] == pytest.approx(undisturbed[0].metrics()[-1]["eval/validation/loss"], rel=1e-3)
    assert folder.held_out.read_bytes() == written


def test_a_short_trial_scales_everything_and_is_marked(corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, corpus, cluster={"workers": 1}, zero={"stage": 1}, train={"steps": 80})
    with Command("launch", recipe, "--try", 4, "--local", runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    info = command.info()
    assert (info["state"], info["step"], info["total_steps"]) == ("finished", 4, 4)
    assert info["trial"] == {"steps": 4, "of": 80}
    resolved = YAML(typ="safe", pure=True).load((command.folder / "resolved.yaml").read_text())
    # Of 5 steps of warm-up, and evaluations and checkpoints each 10.
    assert (resolved["schedule"]["warmup"], resolved["evaluate"]["every"], resolved["checkpoint"]["every"]) == (1, 1, 1)
    assert resolved["tracking"]["tags"] == ["trial"]


def test_a_time_budget_is_measured_by_the_workers_and_kept(corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        corpus,
        cluster={"workers": 1},
        zero={"stage": 1},
        train={"steps": 1_000_000, "minutes": 0.02},
        schedule={"name": "wsd", "warmup": 0.1},
        evaluate={"every": 0.5},
        checkpoint={"every": 1_000_000},
    )
    with Command("launch", recipe, runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    (length,) = command.events("length")
    steps = length["steps"]
    assert f"0.02 minutes hold {steps} of 1000000 steps, at " in output
    assert f"{steps}/{steps}" in output
    assert 1 <= steps < 1_000_000
    assert command.metrics()[-1]["step"] == command.info()["total_steps"] == steps
    resolved = YAML(typ="safe", pure=True).load((command.folder / "resolved.yaml").read_text())
    assert (resolved["train"]["steps"], resolved["train"]["minutes"]) == (steps, None)


def test_plain_transformers_load_the_result(undisturbed: tuple[Command, str]) -> None:
    """With transformers alone: the test process has Shardyard on its path, this one does not."""
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "path = sys.argv[1]; model = M.from_pretrained(path); tokenizer = T.from_pretrained(path)\n"
        "ids = tokenizer('the model', return_tensors='pt')['input_ids']\n"
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=4)[0], skip_special_tokens=True))\n"
        "assert not any(name.startswith('shardyard') for name in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(undisturbed[0].folder / "final")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the model")


def test_sample_eval_and_export(undisturbed: tuple[Command, str], tmp_path: Path) -> None:
    done, _ = undisturbed
    with Command("sample", "latest", "the model ", "--max-new-tokens", 8, runs=done.runs) as command:
        assert command.finish()[1].startswith("the model ")
    with Command("eval", "latest", "--json", runs=done.runs) as command:
        code, output = command.finish()
    assert code == 0
    assert f'"loss": {done.metrics()[-1]["eval/validation/loss"]:.6f}'[:14] in output
    with Command("export", "latest", tmp_path / "out", "--step", STEPS - EVERY, runs=done.runs) as command:
        code, output = command.finish()
    assert code == 0, output
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_sigterm_preempts(corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, corpus, cluster={"workers": 1}, train={"steps": 20000})
    with Command("launch", recipe, "--local", runs=tmp_path / "runs") as command:
        command.wait_for_step(3)
        command.process.send_signal(signal.SIGTERM)
        code, output = command.finish()
    assert code == 143, output
    assert command.info()["state"] == "preempted"
    assert list((command.folder / "checkpoints").glob("step-*"))


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_second_interrupt_ends_at_once(corpus: Path, tmp_path: Path) -> None:
    """A step that takes minutes: the first Ctrl-C waits for it, the second does not."""
    recipe = write_recipe(tmp_path, corpus, train={"steps": 20000}, cluster={"workers": 1})
    with Command("launch", recipe, runs=tmp_path / "runs") as command:
        command.wait_for_step(2)
        started = [*command.descendants()]
        for process in started:
            if "RankWorker" in " ".join(process.cmdline()):
                process.suspend()
        command.interrupt()
        command.wait_for((command.folder / "stop.json").exists)
        assert command.process.poll() is None
        command.interrupt()
        code, output = command.finish()
        until(lambda: not left_of(started), lambda: f"all have ended: {left_of(started)}")
    assert code == 130, output


def test_neither_ctrl_c_nor_kills_change_the_end(
    corpus: Path, undisturbed: tuple[Command, str], tmp_path: Path
) -> None:
    """Ctrl-C, then `kill -9` of a rank, then of the driver: the end is the undisturbed one, bit for bit."""
    runs, held = tmp_path / "runs", tmp_path / "held"
    with Command("launch", write_recipe(tmp_path, corpus, **LONG, hooks=held_by(held)), runs=runs) as command:
        stopped = _interrupt(command)
    # Held behind the next checkpoint each time, so that the kill falls within the run however fast the machine is.
    held.write_text(str(stopped + EVERY + 5))
    with Command("resume", "latest", runs=runs) as command:
        _kill_a_rank(command, after=stopped)
        held.write_text(str(stopped + 2 * EVERY + 10))
        _kill_the_driver(command)
    held.unlink()
    _write_old_names(command.folder)
    with Command("resume", "latest", runs=runs) as command:
        code, output = command.finish()
    assert code == 0, output
    assert "is now called" not in output
    resumed = [event["resumed_step"] for event in command.events("attempt")]
    assert resumed[:2] == [None, stopped]
    assert stopped < resumed[2] < resumed[3] < STEPS
    assert_same_weights(command, undisturbed[0])
    _check_ledger(command, undisturbed[0], resumed)


def _check_ledger(command: Command, undisturbed: Command, resumed: list[int | None]) -> None:
    """Both ranks of each resumed attempt left their entries, and steps around the kills have the documents that they
    had in the undisturbed run, whose ledger is of one attempt."""
    ours, theirs = RunFolder(command.folder), RunFolder(undisturbed.folder)
    attempts = read_ledger(ours.ledger)
    assert [attempt.header["step"] for attempt in attempts] == [step or 0 for step in resumed]
    assert all(len(attempt.states) == attempt.header["streams"] for attempt in attempts[1:])
    assert [attempt.header["readers"] for attempt in attempts] == [2] * len(resumed)
    steps = [step + more for step in resumed[1:] if step for more in (0, 1)]
    for step in steps:
        assert documents_of_step(ours, step, 2) == documents_of_step(theirs, step, 2)


def _write_old_names(folder: Path) -> None:
    """The run folder as if it had begun before `data.lanes` and `data.blind` were renamed."""
    resolved = folder / "resolved.yaml"
    text = resolved.read_text()
    old = text.replace("  streams: 4\n", "  lanes: 4\n").replace("  drop_inputs: false\n", "  blind: false\n")
    assert old.count("lanes: 4") == old.count("blind: false") == 1
    resolved.write_text(old)


def _interrupt(command: Command) -> int:
    """Ctrl-C ends with 130, a checkpoint and the command that resumes; returns the step."""
    command.wait_for_step(3)
    command.interrupt()
    code, output = command.finish()
    assert code == 130, output
    assert "Ctrl-C again" in output
    assert f"shardyard resume {command.folder}\n" in output
    assert not NOISE.search(output), output
    assert command.info()["state"] == "interrupted"
    stopped: int = command.metrics()[-1]["step"]
    assert (command.folder / "checkpoints" / f"step-{stopped:08d}" / "manifest.json").exists()
    return stopped


def _newest(command: Command) -> int:
    """Step of the newest whole checkpoint."""
    return max(
        (
            int(path.parent.name.removeprefix("step-"))
            for path in command.folder.glob("checkpoints/step-*/manifest.json")
        ),
        default=0,
    )


def _kill_a_rank(command: Command, after: int) -> None:
    """The run goes on by itself from the newest checkpoint."""
    command.wait_for(lambda: _newest(command) > after)
    workers = [process for process in command.descendants() if "RankWorker" in " ".join(process.cmdline())]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    command.wait_for(lambda: command.events("failure"))
    assert command.events("failure")[0]["then"] == "retry"


def _kill_the_driver(command: Command) -> None:
    """Ray's own monitoring agents end by themselves some time later; what computes or writes must be gone at once."""
    command.wait_for(lambda: len(command.events("attempt")) == 3)
    resumed = command.events("attempt")[-1]["resumed_step"]
    command.wait_for(lambda: _newest(command) > resumed)
    started = [process for process in command.descendants() if not process.name().endswith("Agent")]
    command.process.kill()
    _, left = psutil.wait_procs(started, timeout=PATIENCE_SECONDS)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


def test_after_an_explosion_the_command_that_is_told_goes_on(corpus: Path, tmp_path: Path) -> None:
    """It is not retried; its poisoned checkpoints are passed over; and what is told to type is typed."""
    recipe = write_recipe(
        tmp_path,
        corpus,
        train={"steps": 8, "precision": "fp32", "gradient_clipping": 0.0},
        optimizer={"name": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "betas": [0.9, 0.95]},
        schedule={"name": "constant", "warmup": 0},
        zero={"stage": 1},
        checkpoint={"every": 1, "keep": 8},
        evaluate={"every": 8, "rows": 8},
        sample={"prompts": []},
        cluster={"workers": 1},
    )
    runs = tmp_path / "runs"
    with Command("launch", recipe, "--until", 3, runs=runs) as command:
        assert command.finish()[0] == 0
    with Command("resume", command.folder, "-s", "optimizer.lr=1e30", runs=runs) as command:
        code, output = command.finish()
    assert code == 1
    assert "Traceback" not in output
    assert command.info()["state"] == "failed"
    assert command.info()["attempts"] == 2
    (told,) = set(re.findall(r"`(shardyard resume [^`]*--step[^`]*)`", " ".join(output.split())))
    assert shlex.split(told)[2:] == [str(command.folder), "--step", "3", "-s", "optimizer.lr=0.0003"]
    with Command(*shlex.split(told)[1:], runs=runs) as command:
        code, output = command.finish()
    assert code == 0, output
    losses = [line["train/loss"] for line in command.metrics()]
    assert len(losses) == 8
    assert all(0 < loss < 10 for loss in losses), losses
    assert any("going back to step 3" in event["text"] for event in command.events("notice"))
    assert (command.folder / "final" / "model.safetensors").is_file()


def test_without_network_account_and_wandb_folder(corpus: Path, tmp_path: Path) -> None:
    """Closed network, no account, an unwritable W&B folder: it trains, and says once what it could not do."""
    recipe = write_recipe(tmp_path, corpus, tracking={"wandb": {"mode": "auto"}}, train={"steps": 10})
    closed = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    home = str(tmp_path / "home")
    with Command(
        "launch", recipe, runs=tmp_path / "runs", prefix=closed, WANDB_DIR=str(blocked), WANDB_API_KEY="", HOME=home
    ) as command:
        code, output = command.finish()
    assert code == 0, output
    assert output.count("cannot be written") == 1, output
    assert command.info()["state"] == "finished"


def test_an_unreachable_wandb_server_costs_nothing_but_a_line(corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, corpus, tracking={"wandb": {"mode": "online"}}, train={"steps": 10}, cluster={"workers": 1}
    )
    key = "0123456789abcdef0123456789abcdef01234567"
    with Command(
        "launch", recipe, "--local", runs=tmp_path / "runs", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=key
    ) as command:
        code, output = command.finish()
    assert code == 0, output
    assert output.count("no connection") == 1, output
    assert list((command.folder / "wandb").glob("offline-run-*"))
    for path in command.folder.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), f"the key stands in {path}"
