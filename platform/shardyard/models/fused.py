"""Activation functions of transformers in one operation of PyTorch, where they are written as many.

GPT-2's GELU (`gelu_new`) is eight operations in transformers, each of which reads and writes a tensor of the inner
width of the feed-forward block, and some of which keep one for the backward pass. PyTorch has the same formula as one:

    0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))      (Hendrycks and Gimpel 2016)

Results differ by rounding only. Weights, configuration and exported models stay the same.
"""

from __future__ import annotations

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

_TANH = (NewGELUActivation, FastGELUActivation)


def fuse_activations(model: nn.Module) -> None:
    """Replace GELU by tanh in many operations with PyTorch's, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _TANH:
                setattr(parent, name, nn.GELU(approximate="tanh"))
