"""Finding batches that break a run, and what the recipe says follows: pure functions of the losses and norms so far.

A value x is a spike if its robust z-score is above the threshold:

    z = (x - m) / s,   s = max(1.4826 · median |y - m|, 0.001 · |m|)

where y are the values of the last `window` steps without an anomaly and m is their median. The median absolute
deviation times 1.4826 estimates the standard deviation of a normal distribution (Rousseeuw and Croux 1993), and a spike
among the y does not move it. OLMo-core's SkipStepOptimizer skips updates in the same way, with mean and standard
deviation over 128 steps and a threshold of 6. PaLM went back to a checkpoint and skipped the batches around a spike,
because other batches on the same weights gave none (arXiv:2204.02311, section 5.1).

Each rank computes the same, from sums over all ranks: no further collective is needed to agree.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from pydantic import JsonValue

from shardyard.recipe.sections.anomalies import Anomalies, Signal

Kind = Literal["nan", "spike"]
Action = Literal["stop", "skip", "rollback", "lower_rate"]
# Of a normal distribution: standard deviation over median absolute deviation.
MAD_TO_SIGMA = 1.4826
# A loss that does not move has no deviation; a thousandth of it is no spike.
LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class Anomaly:
    """A batch that breaks the run, and what follows.

    value: of the signal. usual, score: median of the window and z-score, of a spike. count: of actions so far, with
    this one. exceeded: whether the action is not the recipe's, because `at_most` are used up.
    """

    step: int
    kind: Kind
    signal: Signal
    value: float
    action: Action
    usual: float | None = None
    score: float | None = None
    count: int = 0
    exceeded: bool = False

    @property
    def skips(self) -> bool:
        """Whether no update is made from the batch."""
        return self.action in ("skip", "lower_rate")


def robust_score(value: float, values: Sequence[float]) -> tuple[float, float]:
    """The z-score of a value, and the median of `values`."""
    middle = median(values)
    deviation = MAD_TO_SIGMA * median(abs(one - middle) for one in values)
    scale = max(deviation, LEAST_SHARE * abs(middle))
    return ((value - middle) / scale if scale else math.inf if value > middle else 0.0), middle


class Policy:
    """Judges the loss and the gradient norm of each step, in their order. Its state is JSON and goes into checkpoints.

    rolled_back: anomalies that were answered by a rollback, which the checkpoint from which the run goes on does not
    contain. stage: what a step is a part of; values of another part are not compared with.
    """

    def __init__(
        self, settings: Anomalies, *, rolled_back: int = 0, stage: Callable[[int], object] = lambda step: None
    ) -> None:
        self._settings, self._stage = settings, stage
        self._last = 0
        self._recent: dict[Signal, deque[float]] = {name: deque(maxlen=settings.window) for name in settings.signals}
        self._acted = 0
        self._rolled_back = rolled_back
        self._lowered: list[int] = []

    def judge(self, step: int, loss: float, norm: float | None) -> Anomaly | None:
        """What is wrong with a batch, and what follows; None if nothing is."""
        if self._last and self._stage(step) != self._stage(self._last):
            for recent in self._recent.values():
                recent.clear()
        self._last = step
        found: dict[Signal, float] = {"loss": loss} if norm is None else {"loss": loss, "grad_norm": norm}
        anomaly = self._not_finite(step, found) or self._spike(step, found)
        if anomaly is None:
            for name, recent in self._recent.items():
                if name in found:
                    recent.append(found[name])
        elif anomaly.action == "lower_rate":
            self._lowered.append(step)
        return anomaly

    def rate_factor(self, step: int) -> float:
        """The factor of the learning rate at a step."""
        steps = self._settings.rate_steps
        count = sum(at < step and (steps is None or step <= at + steps) for at in self._lowered)
        return self._settings.rate_factor**count if count else 1.0

    def state_dict(self) -> Mapping[str, JsonValue]:
        """What later decisions depend on."""
        recent: dict[str, JsonValue] = {name: list(values) for name, values in self._recent.items()}
        return {"recent": recent, "acted": self._acted, "lowered": list(self._lowered), "last": self._last}

    def load_state_dict(self, state: Mapping[str, JsonValue]) -> None:
        """Continue from the state of a checkpoint."""
        recent, acted, lowered, last = (state.get(name) for name in ("recent", "acted", "lowered", "last"))
        for name, values in self._recent.items():
            values.clear()
            kept = recent.get(name) if isinstance(recent, dict) else None
            values.extend(
                float(one) for one in (kept if isinstance(kept, list) else ()) if isinstance(one, int | float)
            )
        self._last = last if isinstance(last, int) else 0
        self._acted = acted if isinstance(acted, int) else 0
        self._lowered = [one for one in lowered if isinstance(one, int)] if isinstance(lowered, list) else []

    def _not_finite(self, step: int, found: Mapping[Signal, float]) -> Anomaly | None:
        for name, value in found.items():
            if not math.isfinite(value):
                return self._act(Anomaly(step, "nan", name, value, self._settings.on_nan))
        return None

    def _spike(self, step: int, found: Mapping[Signal, float]) -> Anomaly | None:
        action = self._settings.on_spike
        if action == "continue":
            return None
        for name, recent in self._recent.items():
            if name not in found or len(recent) < self._settings.window // 2:
                continue
            score, usual = robust_score(found[name], recent)
            if score > self._settings.threshold:
                return self._act(Anomaly(step, "spike", name, found[name], action, usual, score))
        return None

    def _act(self, anomaly: Anomaly) -> Anomaly:
        if anomaly.action == "stop":
            return anomaly
        done = self._acted + self._rolled_back
        if done >= self._settings.at_most:
            return Anomaly(**{**vars(anomaly), "action": "stop", "count": done, "exceeded": True})
        if anomaly.action != "rollback":
            self._acted += 1
        return Anomaly(**{**vars(anomaly), "count": done + 1})
