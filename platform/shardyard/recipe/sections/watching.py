"""Evaluation, sampling, hooks and tracking during training."""

from __future__ import annotations

from typing import Annotated, Literal

from shardyard.recipe.lengths import StepsOrShare
from shardyard.recipe.sections.base import REQUIRED, Section, described

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,79}$"


class EarlyStopping(Section):
    metric: str = described("eval/validation/loss", "Metric to watch, as the run records it.")
    patience: int = described(
        REQUIRED, "Evaluations without improvement after which training ends.", "evaluations", ge=1
    )
    min_delta: float = described(0.0, "Smallest change that counts as an improvement.", ge=0.0)


class Evaluate(Section):
    every: Annotated[int | float, StepsOrShare(least=1)] | None = described(
        None,
        "Steps, or share of the run, between two evaluations. Default: a tenth of the run; one is always done at the "
        "end.",
        "steps",
    )
    rows: int = described(64, "Held-out rows per evaluation; always the same rows.", "sequences", ge=1)
    generate_rows: int = described(
        0, "Held-out rows that are also generated, for BLEU, chrF and error rates; 0 generates none.", "sequences", ge=0
    )
    rouge: Literal["off", "plain", "stemmed"] = described(
        "off",
        "Whether generated rows are also scored by ROUGE-1, ROUGE-2 and ROUGE-L, as summaries are; stemmed takes "
        "endings off English words first (needs nltk).",
    )
    beams: int = described(1, "Beam size of generation; 1 is greedy.", ge=1)
    early_stopping: EarlyStopping | None = described(None, "Stop when a validation metric no longer improves.")


class HookUse(Section):
    name: str = described(
        REQUIRED, "Hook of an installed package (entry point shardyard.hooks), or package.module:name, or file.py:name."
    )
    every: int = described(1, "Steps between two calls; the last step of a run is always one.", "steps", ge=1)
    options: dict[str, object] = described({}, "What the hook is made with, by the names that it gives its options.")


class Sample(Section):
    prompts: list[str] = described(
        [], "Prompts that are continued after each evaluation; the results are written to samples.jsonl."
    )
    temperature: float = described(
        0.0,
        "Sampling temperature: 0 is greedy, 1 samples from the model's distribution.",
        ge=0.0,
    )
    max_new_tokens: int = described(64, "Maximum length of each continuation.", "tokens", ge=1)


class Wandb(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = described(
        "auto", "auto is online where a key is found and offline otherwise; WANDB_MODE wins over this."
    )
    project: str = described("shardyard", "W&B project.", min_length=1)
    entity: str | None = described(None, "W&B entity (team or user).")
    group: str | None = described(None, "W&B group.")


class TrackerUse(Section):
    name: str = described(
        REQUIRED,
        "Tracker of an installed package (entry point shardyard.trackers), or package.module:name, or file.py:name.",
    )
    options: dict[str, object] = described({}, "What the tracker is made with, by the names that it gives its options.")


class Alerts(Section):
    when: list[Literal["failed", "loss_spike", "no_progress", "finished"]] = described(
        [], "Events that raise an alert: failed, loss_spike, no_progress, finished."
    )
    loss_spike: float = described(
        2.0, "Ratio of the training loss to the median of the records before it that counts as a spike.", gt=1.0
    )
    no_progress_seconds: int = described(
        1800, "Time without a step after which a run raises no_progress.", "seconds", ge=10
    )
    webhook: str | None = described(
        None, "Environment variable with the URL that alerts are posted to as JSON.", pattern=_VARIABLE
    )
    slack: str | None = described(
        None, "Environment variable with the URL of a Slack incoming webhook.", pattern=_VARIABLE
    )
    email: list[str] = described([], "Email addresses that alerts are sent to.")
    smtp: str = described(
        "SHARDYARD_SMTP_URL",
        "Environment variable with the URL of the mail server: smtps://user:password@host:465.",
        pattern=_VARIABLE,
    )


class Tracking(Section):
    every: Annotated[int | float, StepsOrShare(least=1)] = described(
        1, "Steps, or share of the run, between two records in metrics.jsonl.", "steps"
    )
    tags: list[str] = described([], "Tags of the run.")
    wandb: Wandb = described(Wandb(), "Weights & Biases, a mirror of the run folder.")
    trackers: list[TrackerUse] = described(
        [], "Further places that records are copied to, by code of yours (docs/extending.md)."
    )
    alerts: Alerts = described(Alerts(), "Alerts that the dashboard sends while it runs.")
