"""W&B's smoothing of curves: a time-weighted exponential moving average, computed for whole arrays at once.

    weight = min(sqrt(smooth), 0.999)
    a[i]   = weight ** ((x[i] - x[i-1]) / (x[-1] - x[0]) * 1000)
    sum[i] = sum[i-1] * a[i] + y[i]        mass[i] = mass[i-1] * a[i] + 1        smoothed[i] = sum[i] / mass[i]

The rule is documented at https://docs.wandb.ai/models/app/features/panels/line-plot/smoothing.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from shardyard.dashboard.charts.columns import Floats

VIEWPORT_SCALE = 1000.0
# exp(-400) and exp(400) are both far from the limits of float64.
_BLOCK = 400.0


def smoothed(x: Floats, y: Floats, smooth: float) -> Floats:
    """The smoothed y; x ascends. A y that is not finite stays unchanged and is ignored by the average."""
    finite = np.isfinite(y)
    if smooth <= 0 or finite.sum() < 2:
        return y
    if not finite.all():
        result = y.copy()
        result[finite] = smoothed(x[finite], y[finite], smooth)
        return result
    spread = float(x[-1] - x[0])
    if spread <= 0:
        return y
    log_weight = math.log(min(math.sqrt(smooth), 0.999))
    gaps = np.diff(x)
    if gaps[0] > 0 and (gaps == gaps[0]).all():
        return _evenly(max(float(gaps[0]) / spread * VIEWPORT_SCALE * log_weight, -4 * _BLOCK), y)
    steps = np.concatenate(([0.0], gaps)) / spread * VIEWPORT_SCALE
    decays = np.maximum(steps * log_weight, -4 * _BLOCK)
    return _scan(decays, y) / _scan(decays, np.ones_like(y))


def _evenly(log_decay: float, y: Floats) -> Floats:
    """The rule for equidistant points such as steps: the mass is a geometric series, and all blocks are equal."""
    block = min(y.size, max(1, int(_BLOCK / -log_decay)))
    powers = np.exp(log_decay * np.arange(block))
    result = np.empty_like(y)
    carried = 0.0
    for begin in range(0, y.size, block):
        part = y[begin : begin + block]
        scale = powers[: part.size]
        result[begin : begin + block] = scale * (carried * math.exp(log_decay) + np.cumsum(part / scale))
        carried = float(result[begin + part.size - 1])
    mass: Floats = np.expm1(log_decay * np.arange(1, y.size + 1)) / math.expm1(log_decay)
    return result / mass


def _scan(log_decays: Floats, y: Floats) -> Floats:
    """s[i] = s[i-1] * exp(log_decays[i]) + y[i], in blocks so that no power exceeds the range of float64."""
    result = np.empty_like(y)
    total = np.cumsum(log_decays)
    blocks = np.floor(-total / _BLOCK)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(blocks)) + 1, [y.size]))
    carried = 0.0
    for begin, end in itertools.pairwise(starts):
        powers = np.exp(total[begin:end] - total[begin])
        carried_in = carried * math.exp(log_decays[begin])
        result[begin:end] = powers * (carried_in + np.cumsum(y[begin:end] / powers))
        carried = float(result[end - 1])
    return result
