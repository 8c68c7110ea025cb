"""One training run on one rank: assembly, loop, step, checkpoints, evaluation. Only this package imports DeepSpeed."""

import os

from shardyard.hardware import has_gpu

# On import, DeepSpeed looks for an accelerator and warns if it finds none, which is fine here.
if not has_gpu() and not os.environ.get("DS_ACCELERATOR"):
    os.environ["DS_ACCELERATOR"] = "cpu"
