"""One training run on one rank: assembly, the loop, one step, checkpoints, evaluation. The room of DeepSpeed."""

import os

import torch

# DeepSpeed looks for an accelerator when it is imported and warns where it finds none; that is no fault.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
