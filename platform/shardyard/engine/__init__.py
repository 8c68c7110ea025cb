"""One training run on one rank: assembly, the loop, one step, checkpoints, evaluation. The room of DeepSpeed."""

import os

from shardyard.hardware import has_gpu

# DeepSpeed looks for an accelerator when it is imported and warns where it finds none; that is no fault.
if not has_gpu() and not os.environ.get("DS_ACCELERATOR"):
    os.environ["DS_ACCELERATOR"] = "cpu"
