"""Keeping a batch that breaks the run from the weights, and from all else that a step leaves behind.

A batch that is skipped leaves the run as one that was never computed: no update, no random numbers, no statistics of
batch normalisation, no change of fp16's loss scale. A run that is told before to skip it ends with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import deepspeed
import torch

from shardyard.engine.anomalies.policy import Anomaly, Policy
from shardyard.engine.anomalies.quirks import Gate, LossScale
from shardyard.engine.deepspeed.batch_norm import RunningStatistics
from shardyard.engine.mesh import Mesh


class Guard:
    """Judges each batch between its gradient and its update. norm: of the gradient of the last batch.

    The host waits for the loss here, which DeepSpeed's check of the norm makes it do in every step but those in fp32
    without ZeRO.
    """

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, mesh: Mesh, policy: Policy, statistics: RunningStatistics
    ) -> None:
        self._engine, self._mesh, self._policy, self._statistics = engine, mesh, policy, statistics
        self._gate, self._scale = Gate(engine, mesh), LossScale(engine)
        self._random: tuple[torch.Tensor, torch.Tensor | None] = torch.get_rng_state(), None
        self._fp16 = bool(engine.fp16_enabled())
        self.norm = 0.0

    def remember(self) -> None:
        """Keep what a batch may change beside the weights; called before it is computed."""
        cuda = torch.cuda.get_rng_state(self._mesh.device) if self._mesh.device.type == "cuda" else None
        self._random = torch.get_rng_state(), cuda
        self._statistics.remember()
        self._scale.remember()

    def update(self, step: int, loss: Callable[[], float]) -> Anomaly | None:
        """Update the weights, unless the policy refuses it; all ranks call this at the end of a global batch.

        Args:
            loss: the loss over all ranks, for which the host waits.
        """
        asked = False
        found: Anomaly | None = None

        def refuses(norm: float) -> bool:
            nonlocal asked, found
            asked, self.norm = True, norm
            found = self._judge(step, loss(), norm)
            return found is not None and found.skips

        self._gate.step(refuses)
        if not asked:
            # DeepSpeed has dropped gradients that are not finite before it knew their norm.
            self.norm = math.inf
            found = self._judge(step, loss(), math.inf)
        if found is not None and found.skips:
            self._put_back()
        return found

    def _judge(self, step: int, loss: float, norm: float) -> Anomaly | None:
        # Too large a loss scale, which DeepSpeed lowers.
        scaled = self._fp16 and not math.isfinite(norm) and float(self._engine.optimizer.loss_scale) > 1
        return self._policy.judge(step, loss, None if scaled else norm)

    def _put_back(self) -> None:
        cpu, cuda = self._random
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self._mesh.device)
        self._statistics.put_back()
        self._scale.put_back()
