"""Contrastive language–audio pretraining: match recordings and their descriptions within a batch.

Wu et al. 2023 (Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
Augmentation), equation 1: the mean of both directions, each with a scale of its own. The loss that `ClapModel` of
transformers returns (5.22) has the direction from text to audio twice, once with each scale.
"""

from __future__ import annotations

from shardyard.objectives.contrastive.loss import Contrastive, recalls
from shardyard.objectives.inputs import ObjectiveInputs


class AudioContrastive(Contrastive):
    """Rows of recordings with descriptions (`rows.py`)."""

    matched = "audio"
    shares_of_rows = recalls("audio")


def make(inputs: ObjectiveInputs) -> AudioContrastive:
    """Create the objective, which has no settings."""
    return AudioContrastive(inputs.data_group)
