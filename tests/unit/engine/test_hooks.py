"""Periodic work of the loop: when it is due, when it ends a run early, and prompts that are too long."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shardyard.data.exported import exported_tokenizer
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.engine.checkpoint.checkpoint import SpoiledError, spoiled_text
from shardyard.engine.hooks.base import Hook, NullEventLog
from shardyard.engine.hooks.checkpoints import CheckpointHook
from shardyard.engine.hooks.early_stopping import EarlyStoppingHook
from shardyard.engine.hooks.generate import generate
from shardyard.errors import CheckpointError, TrainingError
from shardyard.models.build import architecture_config, construct, special_token_ids
from shardyard.objectives.scores import perplexity
from shardyard.recipe.schema import EarlyStopping, Model
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import CheckpointFailed, CheckpointSaved, EarlyStop, Event, Notice
from support.tiny import CONFIGS

METRIC = "eval/validation/loss"
CPU = torch.device("cpu")


class Notebook:
    """Keeps what a hook tells."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def sample(self, step: int, prompt: str, text: str) -> None: ...


def test_every_is_due_at_multiples_and_at_the_last_step() -> None:
    assert [step for step in range(1, 11) if Hook(4).due(step, 10)] == [4, 8, 10]
    assert [step for step in range(1, 4) if Hook(100).due(step, 3)] == [3]


def watched(losses: list[float], *, patience: int = 2, min_delta: float = 0.0) -> tuple[list[bool], Notebook]:
    notes = Notebook()
    hook = EarlyStoppingHook(EarlyStopping(patience=patience, min_delta=min_delta), notes)
    stops = []
    for number, loss in enumerate(losses, start=1):
        hook.on_step(StepRecord(10 * number, {METRIC: loss, "train/loss": 0.0}))
        stops.append(hook.stop)
    return stops, notes


def test_patience_runs_out_after_evaluations_without_improvement() -> None:
    stops, notes = watched([3.0, 2.0, 2.5, 2.0])
    assert stops == [False, False, False, True]
    assert notes.events == [EarlyStop(step=40, metric=METRIC, best=2.0, best_step=20)]


def test_an_improvement_restores_patience() -> None:
    stops, notes = watched([3.0, 3.1, 2.9, 3.0, 2.8, 2.9, 2.85])
    assert stops == [False] * 6 + [True]
    (event,) = notes.events
    assert isinstance(event, EarlyStop)
    assert event.best_step == 50


def test_an_improvement_is_more_than_the_least_change() -> None:
    assert watched([3.0, 2.95, 2.9], min_delta=0.1)[0] == [False, False, True]
    assert watched([3.0, 2.95, 2.89], min_delta=0.1)[0] == [False, False, False]
    # Measured against the best and not against the last one, or slow progress would never count.
    assert watched([3.0, 2.94, 2.88, 2.82], min_delta=0.1)[0] == [False, False, False, False]


def test_a_loss_that_is_no_number_is_no_improvement() -> None:
    stops, notes = watched([math.nan, math.inf])
    assert stops == [False, True]
    (event,) = notes.events
    assert isinstance(event, EarlyStop)
    assert event.best == math.inf


def test_the_state_survives_a_checkpoint() -> None:
    settings = EarlyStopping(patience=3)
    losses = [3.0, 2.0, 2.5, 2.4, 2.3]
    straight = EarlyStoppingHook(settings, NullEventLog())
    for number, loss in enumerate(losses):
        straight.on_step(StepRecord(number, {METRIC: loss}))
        resumed = EarlyStoppingHook(settings, NullEventLog())
        resumed.load_state_dict(json.loads(json.dumps(straight.state_dict(), allow_nan=False)))
        assert resumed.state_dict() == straight.state_dict()
        assert resumed.stop == straight.stop
        later = [straight.state_dict(), resumed.state_dict()]
        assert later[0] == later[1]
    assert straight.stop


def test_a_state_without_a_best_is_json_and_is_read_back() -> None:
    settings = EarlyStopping(patience=1)
    state = json.loads(json.dumps(EarlyStoppingHook(settings, NullEventLog()).state_dict(), allow_nan=False))
    assert state == {"best": None, "best_step": 0, "without": 0}
    hook = EarlyStoppingHook(settings, NullEventLog())
    hook.load_state_dict(state)
    hook.on_step(StepRecord(1, {METRIC: 1e9}))
    assert not hook.stop
    assert hook.state_dict()["best"] == 1e9


class Failing:
    """A checkpointer whose disk is full until it is not."""

    background = False

    def __init__(self) -> None:
        self.full, self.saves = True, 0
        self.spoiled: list[str] = []
        self.is_writing = self.written = False

    def spoiled_weights(self) -> list[str]:
        return [] if self.background else self.spoiled

    def begin(self, state: Any, streams: Any) -> None:
        self.saves += 1
        self.is_writing, self.step = True, state

    def finish(self) -> Any:
        self.is_writing = self.written = False
        if self.background and self.spoiled:
            raise SpoiledError(spoiled_text(self.step, self.spoiled))
        if self.full:
            raise CheckpointError("No space left on device")
        from pathlib import Path

        from shardyard.engine.checkpoint.checkpoint import Saved

        return Saved(Path(f"checkpoints/step-{self.step:08d}"), self.step, 7, 0.5, 0.25, ("step-00000010",))


def test_a_checkpoint_that_failed_is_told_and_tried_again() -> None:
    notes, checkpointer = Notebook(), Failing()
    hook = CheckpointHook(checkpointer, lambda step: (step, {}), notes, exploded)  # type: ignore[arg-type,return-value]
    hook.on_step(StepRecord(10, {}))
    failed = CheckpointFailed(step=10, error="No space left on device")
    assert notes.events == [failed]
    assert hook.saved_step is None
    # At the end of a run there is no next one: the error is the run's.
    with pytest.raises(CheckpointError):
        hook.save(10)
    checkpointer.full = False
    hook.on_step(StepRecord(20, {}))
    assert notes.events == [
        failed,
        failed,
        Notice(text="the disk is full: step-00000010 made room for the checkpoint of step 20", warns=True),
        CheckpointSaved(step=20, path="step-00000020", seconds=0.5, paused_seconds=0.25, bytes=7),
    ]
    hook.save(20)
    assert checkpointer.saves == 3


def test_a_checkpoint_beside_training_is_told_once_it_is_written() -> None:
    notes, checkpointer = Notebook(), Failing()
    checkpointer.background = True
    hook = CheckpointHook(checkpointer, lambda step: (step, {}), notes, exploded)  # type: ignore[arg-type,return-value]
    hook.on_step(StepRecord(10, {}))
    hook.poll()
    assert notes.events == [], "it is being written"
    checkpointer.written = True
    hook.poll()
    assert notes.events == [CheckpointFailed(step=10, error="No space left on device")]
    assert hook.saved_step is None
    checkpointer.full = False
    hook.on_step(StepRecord(20, {}))
    # The next one waits for the one before.
    hook.on_step(StepRecord(30, {}))
    assert [event.step for event in notes.events if isinstance(event, CheckpointSaved)] == [20]
    # A run that ends waits too, and saves no step twice.
    hook.save(30)
    assert hook.saved_step == 30
    assert checkpointer.saves == 3


def test_a_checkpoint_by_the_clock_falls_due_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("shardyard.engine.hooks.checkpoints.time.monotonic", lambda: now[0])
    hook = CheckpointHook(Failing(), lambda step: (None, None), Notebook(), exploded, every=1000, seconds=60.0)  # type: ignore[arg-type,return-value]
    found = []
    for seconds in (30.0, 29.0, 2.0, 1.0, 58.0, 200.0, 1.0):
        now[0] += seconds
        found.append(hook.falls_due())
    assert found == [False, False, True, False, False, True, False]
    never = CheckpointHook(Failing(), lambda step: (None, None), Notebook(), exploded, every=1000)  # type: ignore[arg-type,return-value]
    now[0] += 1e9
    assert not never.falls_due()


def exploded(step: int, what: str) -> TrainingError:
    return TrainingError(f"{step}: {what}")


def test_weights_that_are_no_numbers_are_not_saved_and_end_the_run() -> None:
    notes, checkpointer = Notebook(), Failing()
    checkpointer.spoiled = ["a.weight", "b.bias"]
    hook = CheckpointHook(checkpointer, lambda step: (step, {}), notes, exploded)  # type: ignore[arg-type,return-value]
    with pytest.raises(TrainingError, match=r"11: weights are not finite after step 10 \(a\.weight, b\.bias\)"):
        hook.on_step(StepRecord(10, {}))
    assert (checkpointer.saves, notes.events) == (0, [])


def test_perplexity_is_e_to_the_loss_and_infinite_where_that_overflows() -> None:
    assert perplexity(2.0) == pytest.approx(math.e**2)
    assert perplexity(1e4) == math.inf
    assert perplexity(math.inf) == math.inf


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return exported_tokenizer(load_tokenizer("bytes"), "causal_lm")


def model_of(family: str, tokenizer: Any, **config: Any) -> Any:
    torch.manual_seed(2)
    model = Model(family=family, config=CONFIGS[family] | config)
    ids = special_token_ids(tokenizer)
    return construct(model, architecture_config(model, vocabulary=257, special_tokens=ids)).eval()


class Watched:
    """A model that notes what it is asked to continue, and answers with the letter x."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.asked: list[tuple[list[int], int]] = []

    def generate(self, *, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        self.asked.append((input_ids[0].tolist(), max_new_tokens))
        return torch.cat([input_ids, torch.full((1, max_new_tokens), ord("x"))], dim=1)


X = ord("x")


@pytest.mark.parametrize(
    ("prompt", "new", "asked"),
    [
        ("ab", 5, [([256, 97, 98], 5)]),
        ("", 5, [([256], 5)]),
        ("a" * 58, 5, [([256] + [97] * 58, 5)]),
        ("ab", 61, [([256, 97, 98], 61)]),
        # 64 positions: of 256 + 100 letters the last 63 are kept, and the window moves on for what does not fit.
        ("a" * 99 + "b", 1, [([97] * 62 + [98], 1)]),
        ("a" * 99 + "b", 5, [([97] * 62 + [98], 1), ([97] * 46 + [98, X], 4)]),
        ("ab", 64, [([256, 97, 98], 61), ([X] * 48, 3)]),
        ("ab", 80, [([256, 97, 98], 61), ([X] * 48, 16), ([X] * 48, 3)]),
    ],
)
def test_as_much_of_a_prompt_as_fits_is_in_view(
    tokenizer: Any, prompt: str, new: int, asked: list[tuple[list[int], int]]
) -> None:
    model, told = Watched(model_of("gpt2", tokenizer)), list[str]()
    text = generate(model, tokenizer, prompt, max_new_tokens=new, device=CPU, report=told.append)
    assert model.asked == asked
    assert text == "x" * new
    cut = "the prompt has 101 tokens and 63 fit the model's context: the first 38 are left out"
    assert told == ([cut] if len(prompt) == 100 else [])


def test_a_text_ends_at_the_models_last_token_wherever_the_window_is(tokenizer: Any) -> None:
    model = Watched(model_of("gpt2", tokenizer))
    model.generation_config = SimpleNamespace(eos_token_id=X)  # type: ignore[attr-defined]
    assert generate(model, tokenizer, "a" * 70, max_new_tokens=9, device=CPU) == "x"
    assert len(model.asked) == 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_real_model_continues_up_to_its_last_position(tokenizer: Any, family: str) -> None:
    model = model_of(family, tokenizer)
    for prompt in ("", "the ", "the " * 50):
        for new in (1, 63, 200):
            text = generate(model, tokenizer, prompt, max_new_tokens=new, device=CPU)
            assert isinstance(text, str)
    first, second = (generate(model, tokenizer, "the ", max_new_tokens=8, device=CPU) for _ in range(2))
    assert first == second


def test_a_greedy_continuation_is_the_most_likely_token_each_time(tokenizer: Any) -> None:
    model = model_of("gpt2", tokenizer)
    ids = [256, *b"abc"]
    expected = []
    for _ in range(6):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        expected.append(token)
    text = generate(model, tokenizer, "abc", max_new_tokens=6, device=CPU)
    assert text == tokenizer.decode(expected, skip_special_tokens=True)


def test_sampling_follows_its_seed_and_leaves_dropout_alone(tokenizer: Any) -> None:
    model = model_of("gpt2", tokenizer)

    def sampled(seed: int) -> str:
        return generate(model, tokenizer, "abc", max_new_tokens=20, device=CPU, temperature=1.0, seed=seed)

    before = torch.get_rng_state()
    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_copied_weights_that_are_no_numbers_end_the_run_in_a_step_that_ranks_agree_on() -> None:
    notes, checkpointer = Notebook(), Failing()
    checkpointer.background, checkpointer.spoiled = True, ["a.weight", "b.bias", "c.weight", "d.weight"]
    hook = CheckpointHook(checkpointer, lambda step: (step, {}), notes, exploded)  # type: ignore[arg-type,return-value]
    hook.on_step(StepRecord(10, {}))
    assert not hook.falls_due()
    checkpointer.written = True
    hook.poll()
    text = "weights are not finite after step 10 (a.weight, b.bias, c.weight)"
    assert notes.events == [CheckpointFailed(step=10, error=text)]
    # Rank 0 says so with the next step's sum, after which all ranks come here.
    assert hook.falls_due()
    hook.timed = True
    with pytest.raises(TrainingError, match=rf"11: {re.escape(text)}"):
        hook.on_time(12)
    with pytest.raises(TrainingError):
        hook.save(13)
    assert checkpointer.saves == 1
