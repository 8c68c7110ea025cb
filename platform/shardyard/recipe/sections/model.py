"""The model of a recipe: architecture, initial weights, adapters, experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import model_validator

from shardyard.recipe.sections.adapter import Adapter
from shardyard.recipe.sections.base import REQUIRED, Section, described

Checkpointing = Literal["none", "selective", "full"]

# The family of a custom module; also the `model_type` of its configuration.
MODULE = "module"


class Experts(Section):
    """Settings of a mixture of experts that transformers' configuration does not have."""

    balance: float = described(
        0.0, "Weight of the load-balancing loss (Fedus et al. 2021), added to the training loss.", ge=0.0
    )
    z_loss: float = described(
        0.0, "Weight of the router z-loss (Zoph et al. 2022), which keeps the routers' logits small.", ge=0.0
    )


class Probes(Section):
    """What is tried on a narrow copy of the model when a run is planned (docs/plan.md#probes); for models of text."""

    isolation: bool = described(True, "Whether documents of a row see each other; decides `data.isolation: auto`.")
    causality: bool = described(
        True, "Whether a token sees later ones; sets `is_decoder` where the family has it, and refuses the rest."
    )
    padding: bool = described(True, "Whether padding changes the logits of a text; tells if it does.")
    dropout: bool = described(True, "Whether `model.dropout` is what training does; tells if it is not.")
    tied_weights: bool = described(True, "Whether weights that the configuration ties are the same; tells if not.")
    vocabulary: bool = described(True, "Whether the teacher has the vocabulary of the student; refuses another one.")
    tokenizer: bool = described(
        True,
        "Whether the tokenizer has the tokens of the pretrained model; refuses another one, tells if a few differ.",
    )
    gradient: bool = described(True, "Whether a gradient reaches every trained weight; lists those that it misses.")


class Model(Section):
    family: str = described(
        REQUIRED,
        "Model type of transformers, such as gpt2, llama or qwen2; it must have the head that the objective needs. "
        "With `module` it is `module`, and may be left out.",
    )
    config: dict[str, object] = described(
        {},
        "Fields of the family's transformers configuration; others keep their defaults. With `module`, the arguments "
        "of its constructor.",
    )
    labels: list[str] = described(
        [],
        "Names of the classes in their order, for a classifier; sets num_labels, id2label and label2id of the "
        "configuration.",
    )
    module: str | None = described(
        None,
        "A torch nn.Module instead of a family (docs/extending.md): a name that an installed package brings (entry "
        "point shardyard.models), package.module:Class, or file.py:Class.",
    )
    pretrained: str | None = described(
        None,
        "Hub id, folder, prepared model or run:NAME (its newest finished run) with weights to start from; its "
        "configuration is used, `config` overrides it.",
    )
    vocabulary_multiple: int = described(
        1,
        "The rows of the embeddings are padded to a multiple of this, where config gives no vocab_size; 64 or 128 suit "
        "GPUs.",
        "rows",
        ge=1,
    )
    dropout: float | None = described(
        None, "Probability of every dropout in the model. Default: that of the configuration.", ge=0.0, lt=1.0
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "varlen"] | None = described(
        None,
        "Attention implementation of transformers, or varlen: documents of a packed row without a mask, by torch's "
        "varlen_attn on GPUs. Default: sdpa where the family has it, else eager.",
    )
    activation_checkpointing: bool | Checkpointing | None = described(
        None,
        "What the backward pass computes again instead of keeping it: none; selective, all of a layer but matrix "
        "products and attention, nearly free; full, the whole layer, about a third more compute. true is full, false "
        "is none. Default: none where that fits the memory, else the cheapest that does; fixed when a run is planned.",
    )
    activation_checkpointing_interval: int = described(
        1, "Only each so manieth layer is checkpointed, the first one included; others keep their activations.", ge=1
    )
    offload_activations: bool = described(
        False, "Keep the inputs of checkpointed layers in host memory; for GPUs, others compute there anyway."
    )
    logits_chunk: int | None = described(
        None,
        "Most tokens whose logits exist at the same time; 0 for all of a micro-batch. Output layer and loss are then "
        "computed for as many tokens at a time, and again in the backward pass: less memory for large vocabularies, "
        "one more product with the output matrix. Default: all where they fit, else 1024; fixed when a run is planned.",
        "tokens",
        ge=0,
    )
    kernels: Literal["none", "liger"] = described(
        "none",
        "Kernels for norms, rotary positions and gated layers in place of PyTorch's: liger on GPUs, for the families "
        "that it knows (needs liger-kernel).",
    )
    mlp_chunk: int = described(
        0,
        "Most tokens of a micro-batch in a feed-forward block at the same time; 0 for all. Each part is computed again "
        "in the backward pass, so that the inner activations of long rows never exist as a whole.",
        "tokens",
        ge=0,
    )
    compile: bool = described(
        False,
        "Compile each block of the model with torch.compile, equal blocks once; needs a C++ compiler. The code is kept "
        "for later runs (docs/large/compile.md).",
    )
    freeze: list[str] = described(
        [], "Names of parameters that are not trained, such as model.vision_tower.*; * matches any text."
    )
    adapter: Adapter | None = described(
        None, "Train low-rank adapters on the linear layers instead of the weights themselves (LoRA)."
    )
    experts: Experts = described(Experts(), "Mixture of experts: load balancing.")

    probes: Probes = described(Probes(), "What is tried on a narrow copy of the model before it is trained.")

    @property
    def text_config(self) -> Mapping[str, object]:
        """The `config` of the part of the model that reads text; all of `config` if the model has no parts."""
        found = self.config.get("text_config", self.config)
        return found if isinstance(found, dict) else {}

    @model_validator(mode="before")
    @classmethod
    def _family_of_a_module(cls, data: object) -> object:
        """Set the family of a custom module, so that the recipe need not name one."""
        if isinstance(data, dict) and data.get("module") is not None and "family" not in data:
            return {**data, "family": MODULE}
        return data

    @property
    def checkpointing(self) -> Checkpointing:
        """`activation_checkpointing` by name; none if nothing chose it."""
        chosen = self.activation_checkpointing
        return chosen if isinstance(chosen, str) else "full" if chosen else "none"

    @property
    def label(self) -> str:
        """The name of the architecture for users: its family, or the name of the module."""
        return self.family if self.module is None else self.module.rpartition(":")[2]
