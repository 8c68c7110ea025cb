"""Periodic work of the loop. A hook runs on every rank at the same steps, so it may use collectives."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed

from shardyard.data.stream.held_out import HeldOut
from shardyard.engine.checkpoint.checkpoint import Checkpointer, TrainerState
from shardyard.engine.hooks.evaluate import evaluate
from shardyard.engine.hooks.generate import generate
from shardyard.engine.world import Rank
from shardyard.errors import CheckpointError, TrainingError
from shardyard.objectives.base import Objective
from shardyard.recipe.schema import EarlyStopping, Sample
from shardyard.tracking.metrics.record import eval_loss


class EventLog(Protocol):
    """Where a hook tells what happened; only rank 0's reaches the run folder."""

    def event(self, kind: str, **fields: Any) -> None: ...
    def sample(self, step: int, prompt: str, text: str) -> None: ...


class NullEventLog:
    """What every rank but the first tells."""

    def event(self, kind: str, **fields: Any) -> None:
        """Drop it."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Drop it."""


@dataclass
class Every:
    """True at each multiple of `steps` and at the last step."""

    steps: int
    last: int

    def __call__(self, step: int) -> bool:
        return step % self.steps == 0 or step == self.last


class EvaluateHook:
    """Measures the held-out rows."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        objective: Objective,
        held_out: HeldOut,
        rank: Rank,
        *,
        micro_batch: int,
        notes: EventLog,
    ):
        self._engine, self._objective, self._held_out, self._rank = engine, objective, held_out, rank
        self._micro_batch, self._notes = micro_batch, notes

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Add the evaluation's metrics to what was measured at this step."""
        started = time.monotonic()
        result = evaluate(
            self._engine,
            self._objective,
            self._held_out,
            self._rank,
            micro_batch=self._micro_batch,
            synchronised=self._engine.zero_optimization_stage() == 3 and self._rank.world_size > 1,
        )
        metrics[eval_loss()] = result.loss
        metrics |= {f"eval/validation/{name}": value for name, value in result.metrics.items()}
        self._notes.event(
            "evaluation",
            step=step,
            loss=result.loss,
            **result.metrics,
            rows=result.rows,
            seconds=time.monotonic() - started,
        )


class EarlyStoppingHook:
    """Watches a metric; `stop` becomes true after `patience` evaluations without improvement."""

    def __init__(self, settings: EarlyStopping, notes: EventLog, *, larger_is_better: bool = False) -> None:
        self._settings, self._notes = settings, notes
        self._sign = -1.0 if larger_is_better else 1.0
        self._best = math.inf
        self._best_step = 0
        self._without = 0

    @property
    def stop(self) -> bool:
        """Whether patience has run out."""
        return self._without >= self._settings.patience

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Compare this evaluation with the best so far."""
        value = self._sign * metrics[self._settings.metric]
        if value < self._best - self._settings.min_delta:
            self._best, self._best_step, self._without = value, step, 0
            return
        self._without += 1
        if self.stop:
            self._notes.event(
                "early_stop",
                step=step,
                metric=self._settings.metric,
                best=self._sign * self._best,
                best_step=self._best_step,
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; infinity is not JSON, so no best yet is None."""
        best = None if math.isinf(self._best) else self._best
        return {"best": best, "best_step": self._best_step, "without": self._without}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._best = math.inf if state["best"] is None else state["best"]
        self._best_step, self._without = state["best_step"], state["without"]


class SampleHook:
    """Continues the recipe's prompts, on all ranks alike: under ZeRO-3 each pass is a collective."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        tokenizer: Any,
        settings: Sample,
        rank: Rank,
        notes: EventLog,
        *,
        chat: bool = False,
    ) -> None:
        self._engine, self._tokenizer, self._settings = engine, tokenizer, settings
        self._rank, self._notes, self._chat = rank, notes, chat
        self._told: set[str] = set()

    def _tell(self, text: str) -> None:
        """Each once, and not at every evaluation."""
        if text not in self._told:
            self._told.add(text)
            self._notes.event("notice", text=f"sample.prompts: {text}")

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Write a continuation of each prompt to samples.jsonl."""
        self._engine.eval()
        try:
            for prompt in self._settings.prompts:
                text = generate(
                    self._engine.module,
                    self._tokenizer,
                    prompt,
                    max_new_tokens=self._settings.max_new_tokens,
                    device=self._rank.device,
                    temperature=self._settings.temperature,
                    seed=step,
                    chat=self._chat,
                    tell=self._tell,
                )
                self._notes.sample(step, prompt, text)
        finally:
            self._engine.train()


class CheckpointHook:
    """Saves; a checkpoint that cannot be written is told and training goes on, for the next one may succeed.

    Weights that are not finite are not saved: they are no state to go on from, and end the run.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        state: Callable[[int], tuple[TrainerState, dict[str, Any]]],
        notes: EventLog,
        exploded: Callable[[int, str], TrainingError],
        may_write: Callable[[], None] = lambda: None,
    ):
        """`exploded` makes the error of a step; `may_write` raises where the run folder is another process's by now."""
        self._checkpointer, self._state, self._notes, self._exploded = checkpointer, state, notes, exploded
        self._may_write = may_write
        self.saved_step: int | None = None

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Save, and tell either way."""
        with contextlib.suppress(CheckpointError):
            self.save(step)

    def save(self, step: int) -> None:
        """Save unless this step is saved already.

        Raises:
            CheckpointError: it could not be written, which is told.
            TrainingError: weights are not finite.
            TakenOverError: another process trains the run by now.
        """
        if self.saved_step == step:
            return
        self._may_write()
        spoiled = self._checkpointer.spoiled_weights()
        if spoiled:
            raise self._exploded(step + 1, f"weights are not finite after step {step} ({', '.join(spoiled)})")
        state, streams = self._state(step)
        try:
            saved = self._checkpointer.save(state, streams)
        except CheckpointError as error:
            self._notes.event("checkpoint_failed", step=step, error=str(error))
            raise
        self.saved_step = step
        if saved.removed:
            text = f"the disk is full: {', '.join(saved.removed)} made room for the checkpoint of step {step}"
            self._notes.event("notice", text=text)
        self._notes.event("checkpoint", step=step, path=saved.path.name, seconds=saved.seconds, bytes=saved.size_bytes)
