"""Continuing the recipe's prompts, written to samples.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed

from shardyard.engine.deepspeed.generating import ready_to_generate, told
from shardyard.engine.hooks.base import EventLog, Hook
from shardyard.engine.hooks.generate import generate
from shardyard.engine.mesh import Mesh
from shardyard.recipe.schema import Sample
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Notice
from shardyard.tracking.watch.beat import BEAT


class SampleHook(Hook):
    """Continues the recipe's prompts on all ranks in the same way: under ZeRO-3 they gather the model together."""

    name = "sample"
    reads_metrics = False

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        tokenizer: Any,
        settings: Sample,
        mesh: Mesh,
        events: EventLog,
        *,
        every: int = 1,
        chat: bool = False,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`around`: a context for the model while it generates."""
        super().__init__(every)
        self._engine, self._tokenizer, self._settings = engine, tokenizer, settings
        self._mesh, self._events, self._chat = mesh, events, chat
        self._around = around
        self._reported: set[str] = set()

    def on_step(self, record: StepRecord) -> None:
        """Write a continuation of each prompt to samples.jsonl."""
        self._engine.eval()
        try:
            with ready_to_generate(self._engine, self._mesh) as together, self._around():
                if together is not None:
                    self._report(told(self._engine))
                for prompt in self._settings.prompts:
                    text = generate(
                        self._engine.module,
                        self._tokenizer,
                        prompt,
                        max_new_tokens=self._settings.max_new_tokens,
                        device=self._mesh.device,
                        temperature=self._settings.temperature,
                        seed=record.step,
                        chat=self._chat,
                        report=self._report,
                        together=together,
                    )
                    self._events.sample(record.step, prompt, text)
                    BEAT.alive()
        finally:
            self._engine.train()

    def _report(self, text: str) -> None:
        """Report each text only once, not each time the prompts are continued."""
        if text not in self._reported:
            self._reported.add(text)
            self._events.event(Notice(text=f"sample.prompts: {text}"))
