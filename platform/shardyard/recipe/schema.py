"""The recipe: every field with its meaning, unit, default and allowed range.

Pure data. A recipe says *what* to train; everything derived from it (accumulation, number of steps, memory, the
DeepSpeed configuration) is computed in `plan.py`. Fields use the standard terms of the field and are strict: an unknown
key, a string where a number belongs or a value out of range is an error.
"""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from shardyard.recipe.renamed import with_current_names
from shardyard.recipe.sections.adapter import Adapter
from shardyard.recipe.sections.anomalies import Anomalies
from shardyard.recipe.sections.base import NAME_PATTERN, REQUIRED, Section, described
from shardyard.recipe.sections.chat import Chat
from shardyard.recipe.sections.cluster import Cluster, Job, Kubernetes, Network, Replicas, Slurm, Watchdog
from shardyard.recipe.sections.data import Data, Masking, OnError, Order, Source
from shardyard.recipe.sections.media import Audio, Image
from shardyard.recipe.sections.mixture import Stage
from shardyard.recipe.sections.model import Experts, Model
from shardyard.recipe.sections.parallel import Parallel
from shardyard.recipe.sections.scoring import (
    Answering,
    Distillation,
    Embedding,
    Loss,
    ObjectiveName,
    Preference,
    Ranking,
    Regression,
)
from shardyard.recipe.sections.training import (
    Checkpoint,
    Optimizer,
    OptimizerName,
    Precision,
    Schedule,
    ScheduleName,
    Train,
    Zero,
)
from shardyard.recipe.sections.watching import (
    Alerts,
    EarlyStopping,
    Evaluate,
    HookUse,
    Sample,
    TrackerUse,
    Tracking,
    Wandb,
)

__all__ = [
    "NAME_PATTERN",
    "REQUIRED",
    "Adapter",
    "Alerts",
    "Anomalies",
    "Answering",
    "Audio",
    "Chat",
    "Checkpoint",
    "Cluster",
    "Data",
    "Distillation",
    "EarlyStopping",
    "Embedding",
    "Evaluate",
    "Experts",
    "HookUse",
    "Image",
    "Job",
    "Kubernetes",
    "Loss",
    "Masking",
    "Model",
    "Network",
    "ObjectiveName",
    "OnError",
    "Optimizer",
    "OptimizerName",
    "Order",
    "Parallel",
    "Precision",
    "Preference",
    "Ranking",
    "Recipe",
    "Regression",
    "Replicas",
    "Sample",
    "Schedule",
    "ScheduleName",
    "Section",
    "Slurm",
    "Source",
    "Stage",
    "TrackerUse",
    "Tracking",
    "Train",
    "Wandb",
    "Watchdog",
    "Zero",
    "described",
]


class Recipe(Section):
    """One training run from end to end."""

    name: str = described(REQUIRED, "Name of the run and of its folder.", pattern=NAME_PATTERN)
    description: str = described("", "What this recipe is for, in a sentence or two.")
    paper: str | None = described(None, "Paper or source of the architecture and its settings.")
    license: str | None = described(
        None, "Licence of the trained model for its card, as the hub writes it: apache-2.0, mit, other."
    )
    expected: str | None = described(None, "Expected result of a run, and the hardware it was measured on.")
    model: Model = described(REQUIRED, "The architecture.")
    objective: ObjectiveName = described("causal_lm", "What the model learns to do.")
    tokenizer: str = described("bytes", "Spec in tokenizers/ by name, or a path or hub id that AutoTokenizer loads.")
    added_tokens: list[str] = described(
        [], "Special tokens that the tokenizer gets in addition, such as <|im_end|>; the embeddings get rows for them."
    )
    loss: Loss = described(Loss(), "How predictions are scored.")
    masking: Masking = described(Masking(), "Which tokens are predicted (masked_lm, bert_pretraining).")
    image: Image = described(Image(), "How images become tensors, and their augmentation.")
    audio: Audio = described(Audio(), "How recordings are heard, and changed in training.")
    chat: Chat = described(
        Chat(),
        "How conversations become text, and which answers are trained (instruction, preference, vision_language).",
    )
    preference: Preference = described(Preference(), "Settings of the objective preference.")
    distillation: Distillation = described(Distillation(), "Settings of the objective distillation.")
    answering: Answering = described(Answering(), "Settings of the objective question_answering.")
    embedding: Embedding = described(Embedding(), "Settings of the objective embedding.")
    ranking: Ranking = described(Ranking(), "Settings of the objective reranker.")
    regression: Regression = described(Regression(), "Settings of the objective text_regression.")
    data: Data = described(REQUIRED, "Where documents come from and how they become rows.")
    train: Train = described(REQUIRED, "Length, batch size and precision of training.")
    optimizer: Optimizer = described(REQUIRED, "How gradients become updates.")
    schedule: Schedule = described(Schedule(), "Learning rate over the steps.")
    parallel: Parallel = described(Parallel(), "How ranks share the model, the rows and their tokens.")
    zero: Zero = described(Zero(), "How DeepSpeed ZeRO shards the model states.")
    checkpoint: Checkpoint = described(Checkpoint(), "When checkpoints are written.")
    anomalies: Anomalies = described(
        Anomalies(), "What follows from batches that are not finite, or whose loss or gradient leaps."
    )
    evaluate: Evaluate = described(Evaluate(), "When the model is evaluated on held-out data.")
    sample: Sample = described(Sample(), "Samples to generate during training.")
    hooks: list[HookUse] = described([], "Further work between steps, by code of yours (docs/hooks.md).")
    tracking: Tracking = described(Tracking(), "What is recorded and where.")
    cluster: Cluster = described(Cluster(), "Where the run executes.")
    job: Job = described(Job(), "Behaviour as a submitted job: retries, time limit, priority.")

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, data: Any) -> Any:
        """Accept old field names, which recipes in run folders and jobs may still have."""
        return with_current_names(data)
