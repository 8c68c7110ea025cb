"""The components of a recipe other than its weights: tokenizer, configuration, objective and row format.

Training and later evaluations share them, so that they measure the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from transformers import GenerationConfig, PreTrainedConfig

from shardyard.data.answer_ends import answer_ends
from shardyard.data.chat import ChatNotes, prepare_chat
from shardyard.data.exported import exported_tokenizer
from shardyard.data.formats import FormatInputs
from shardyard.data.formats.sentences import has_segments
from shardyard.data.media.processors import make_processor
from shardyard.data.multimodal.conversation import picture_answer_ends, prepare_processor
from shardyard.data.multimodal.placeholders import model_tokenizer, own_processor_makes_rows, placeholder_ids
from shardyard.data.multimodal.processor import own_processor
from shardyard.data.stream.held_out import HeldOut, RowFile, held_out_rows
from shardyard.data.text_frame import set_languages, target_frame
from shardyard.data.tokenizers.compare import check_same_tokens
from shardyard.data.tokenizers.tokenizer import fingerprint, vocabulary_size
from shardyard.models.build import architecture_config, special_token_ids
from shardyard.models.frozen import AdapterOff, Shard, frozen_causal_lm
from shardyard.models.generation import begin_texts, generation_config
from shardyard.objectives.base import Objective
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.isolation import isolation_of
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Recipe


@dataclass(frozen=True)
class Components:
    """`tokenizer` is None for an objective without text, `processor` if there is none to save with the weights;
    `format_inputs` are those of training, and `objective` was created from `objective_inputs`. `chat` says how the
    chat template trains."""

    tokenizer: Any
    config: PreTrainedConfig
    format_inputs: FormatInputs
    objective: Objective
    objective_inputs: ObjectiveInputs
    processor: Any = None
    chat: ChatNotes | None = None

    @property
    def frozen(self) -> nn.Module | None:
        """The teacher or reference model, if it is a model of its own."""
        found = self.objective_inputs.frozen
        return found if isinstance(found, nn.Module) else None

    def exported_tokenizer(self, recipe: Recipe) -> Any:
        """The tokenizer for sampling and for the exported model; None for an objective without text."""
        if self.tokenizer is None:
            return None
        return exported_tokenizer(self.tokenizer, recipe.objective, segments=has_segments(self.config))

    def generation(self, recipe: Recipe, tokenizer: Any) -> GenerationConfig | None:
        """How the model generates with its exported tokenizer; None if it generates no text.

        Raises:
            OSError: the pretrained model whose configuration is kept is not there any more.
        """
        if tokenizer is None:
            return None
        ends = answer_ends(tokenizer) if objective_spec(recipe.objective).chat else []
        if self.format_inputs.processor is not None:
            ends = picture_answer_ends(self.format_inputs.processor)
        found = generation_config(recipe.model, self.config, special_tokens=special_token_ids(tokenizer), ends=ends)
        begins = self.objective_inputs.decoder_prompt
        if found is not None and recipe.data.special_tokens == "tokenizer" and objective_spec(recipe.objective).decodes:
            language, task = recipe.data.target_language, recipe.data.task
            begin_texts(found, begins, language=language, task=task, vocabulary=tokenizer.added_tokens_encoder)
        return found


def make_components(
    recipe: Recipe,
    *,
    tokenizer: Any = None,
    config: PreTrainedConfig | None = None,
    data_group: ProcessGroup | None = None,
    processor: Any = None,
) -> Components:
    """All components of a recipe except the weights.

    Args:
        tokenizer: the tokenizer of an exported model, instead of the recipe's.
        config: the same for the configuration, so that the pretrained weights need not exist any more.
        processor: the same for the processor of pictures and text, for families whose own processor makes the rows.
        data_group: the data-parallel ranks, for an objective that compares their rows; None if there is only one.

    Raises:
        DataError, ModelError: the tokenizer or the model's configuration is not available.
    """
    if tokenizer is None and objective_spec(recipe.objective).text:
        tokenizer = model_tokenizer(recipe)
        set_languages(tokenizer, recipe.data)
    own = own_processor_makes_rows(recipe)
    problem_type = objective_spec(recipe.objective).problem_type
    chat = _chat(recipe, tokenizer)
    config = config or architecture_config(
        recipe.model,
        vocabulary=vocabulary_size(tokenizer) if tokenizer is not None else None,
        special_tokens=special_token_ids(tokenizer) if tokenizer is not None else None,
        placeholders=placeholder_ids(tokenizer, recipe.model.family, recipe.model.config) if own else None,
    )
    if problem_type is not None:
        config.problem_type = problem_type
    format_inputs = _format_inputs(recipe, tokenizer, config)
    if own:
        model = recipe.model
        made = processor or own_processor(model.family, config, tokenizer, recipe.image, model.pretrained)
        chat = prepare_processor(made, recipe.chat)
        format_inputs = replace(format_inputs, processor=made)
    objective_inputs = ObjectiveInputs(
        loss=recipe.loss,
        audio=recipe.audio,
        experts=recipe.model.experts,
        preference=recipe.preference,
        distillation=recipe.distillation,
        answering=recipe.answering,
        embedding=recipe.embedding,
        ranking=recipe.ranking,
        regression=recipe.regression,
        evaluate=recipe.evaluate,
        sequence_length=recipe.data.sequence_length,
        packing=bool(recipe.data.packing),
        decoder_prompt=_decoder_prompt(recipe, tokenizer, config),
        tokenizer=tokenizer,
        model=config,
        isolation=isolation_of(recipe.data),
        logits_chunk=recipe.model.logits_chunk or 0,
        data_group=data_group,
    )
    objective = make_objective(recipe.objective, objective_inputs)
    return Components(
        tokenizer,
        config,
        format_inputs,
        objective,
        objective_inputs,
        make_processor(recipe.objective, format_inputs),
        chat,
    )


def _decoder_prompt(recipe: Recipe, tokenizer: Any, config: PreTrainedConfig) -> tuple[int, ...]:
    """The start token and the tokens that follow it in every text; none for the start token of the configuration."""
    if not objective_spec(recipe.objective).decodes or tokenizer is None:
        return ()
    target = target_frame(tokenizer, config, recipe.data)
    alone = not target.prompt and target.start == getattr(config, "decoder_start_token_id", None)
    return () if alone else (target.start, *target.prompt)


def _format_inputs(recipe: Recipe, tokenizer: Any, config: PreTrainedConfig) -> FormatInputs:
    return FormatInputs(
        recipe.data,
        tokenizer,
        config,
        recipe.masking,
        recipe.image,
        recipe.audio,
        answering=recipe.answering,
        embedding=recipe.embedding,
        chat=recipe.chat,
    )


def _chat(recipe: Recipe, tokenizer: Any) -> ChatNotes | None:
    """Give the tokenizer the chat template of the recipe."""
    spec = objective_spec(recipe.objective)
    if not spec.chat or tokenizer is None:
        return None
    return prepare_chat(tokenizer, recipe.chat, all_answers=spec.layouts == "conversations")


def with_frozen(
    recipe: Recipe,
    components: Components,
    device: torch.device,
    policy: nn.Module | None = None,
    *,
    shard: Shard | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Components:
    """The components with the frozen model that its objective compares with, if it needs one.

    Args:
        policy: the trained model; a model with adapters is its own reference. None if training is already done.
        shard: spreads the frozen model over the ranks; None holds it whole.
        report: called with a message if every rank has to load it whole before.

    Raises:
        ModelError: the frozen model cannot be loaded, or has another vocabulary.
    """
    frozen: Callable[..., Any] | None = None
    spec = objective_spec(recipe.objective)
    if spec.frozen == "reference" and recipe.model.adapter is not None and policy is not None:
        frozen = AdapterOff(policy)
    elif spec.frozen is not None:
        reference = spec.frozen == "reference"
        name = recipe.model.pretrained if reference else recipe.distillation.teacher
        assert name is not None, "checked with the recipe"
        if not reference:
            check_same_tokens(name, components.tokenizer)
        frozen = frozen_causal_lm(
            name,
            vocabulary=components.config.get_text_config().vocab_size,
            precision=precision_of(recipe),
            device=device,
            attention=recipe.model.attention,
            resize_seed=recipe.train.seed if reference else None,
            tokens=None if reference else vocabulary_size(components.tokenizer),
            shard=shard,
            report=report,
        )
    if frozen is None:
        return components
    inputs = replace(components.objective_inputs, frozen=frozen)
    return replace(components, objective_inputs=inputs, objective=make_objective(recipe.objective, inputs))


def held_out(
    recipe: Recipe,
    components: Components,
    rows: int | None = None,
    *,
    file: Path | None = None,
    made_with: str | None = None,
) -> HeldOut:
    """The recipe's held-out rows, without augmentation.

    Args:
        file: where they are read if they have been made before, and else kept.
        made_with: the fingerprint of the tokenizer of a run whose rows are only read; that of an exported model is
            another one.

    Raises:
        DataError: nothing is held out, or a source cannot be read.
    """
    format_inputs = replace(components.format_inputs, training=False)
    kept = None
    if file is not None:
        own = None if components.tokenizer is None else fingerprint(components.tokenizer)
        kept = RowFile(file, _row_settings(recipe, components, made_with or own), keep=made_with is None)
    return held_out_rows(
        format_inputs, rows or recipe.evaluate.rows, recipe.train.seed, objective=recipe.objective, file=kept
    )


# Sections of a recipe and entries of a configuration without a bearing on rows. A shorter run has the same.
_NOT_IN_ROWS = {
    *("name", "description", "paper", "license", "expected", "train", "optimizer", "schedule", "zero", "checkpoint"),
    *("anomalies", "evaluate", "sample", "hooks", "tracking", "cluster", "job", "parallel"),
}
_NOT_IN_CONFIG = {"architectures", "dtype", "transformers_version", "use_cache"}


def _row_settings(recipe: Recipe, components: Components, tokenizer: str | None) -> dict[str, object]:
    """What held-out rows depend on, beside the data, their number and the seed."""
    config = components.config.to_dict()
    return {
        "recipe": recipe.model_dump(mode="json", exclude=_NOT_IN_ROWS),
        "config": {name: config[name] for name in config if name[:1] != "_" and name not in _NOT_IN_CONFIG},
        "tokenizer": tokenizer,
    }
