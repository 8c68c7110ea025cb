"""Adapters in a recipe: low-rank updates of frozen weights, their start, and how the frozen weights are stored."""

from __future__ import annotations

from typing import Literal

from shardyard.recipe.sections.base import Section, described


class Adapter(Section):
    """LoRA (Hu et al. 2021) and its variants, through peft; merged into the weights on export."""

    rank: int = described(8, "Rank of the update of each matrix.", ge=1)
    alpha: float = described(16.0, "Scale of the update: alpha / rank, or alpha / √rank with rslora.", gt=0.0)
    dropout: float = described(0.0, "Probability of dropout before the adapter.", ge=0.0, lt=1.0)
    targets: list[str] = described(
        [],
        "Linear layers and stacked experts, each by the end of its name, such as q_proj or experts.down_proj, or by a "
        "regular expression that matches its whole name, such as .*layers.[0-3].*_proj; by default all but heads and "
        "routers.",
    )
    modules_to_save: list[str] = described(
        [],
        "Names of parameters that are trained in full beside the adapters, such as bert.pooler.*; * matches any text.",
    )
    rslora: bool = described(
        False, "Scale by alpha / √rank, so that a larger rank does not shrink the update (Kalajdzievski 2023)."
    )
    dora: bool = described(
        False, "Train the norm of each row of a weight apart from its direction (DoRA, Liu et al. 2024)."
    )
    init: Literal["kaiming", "pissa", "pissa_niter_16"] = described(
        "kaiming",
        "Initial values: kaiming starts from the pretrained model (B is zero); pissa takes the largest singular "
        "vectors of each weight out of it and trains these (Meng et al. 2024), pissa_niter_16 finds them approximately "
        "and faster.",
    )
    loraplus_ratio: float | None = described(
        None, "Learning rate of B as a multiple of that of A, such as 16 (LoRA+, Hayou et al. 2024).", ge=1.0
    )
    pretrained: str | None = described(
        None,
        "Adapter to continue from: a folder in peft's format (adapter_config.json and weights), or run:NAME for "
        "that of the newest finished run of a recipe. Its rank, alpha and targets must be those of this section.",
    )
    quantize: Literal["nf4", "int8"] | None = described(
        None,
        "Hold the frozen weights of linear layers in 4 bits (nf4, as QLoRA does) or 8 bits (int8, as LLM.int8() stores "
        "them); adapters keep the precision of training.",
    )

    @property
    def scale(self) -> float:
        """The factor of B·A."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
