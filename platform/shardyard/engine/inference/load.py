"""Loading a trained model from a run's final/ or a checkpoint, in one process and without DeepSpeed's engine."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from transformers.utils import logging as transformers_logging

from shardyard import plugins
from shardyard.data.exported import exported_tokenizer
from shardyard.data.multimodal.placeholders import own_processor_makes_rows
from shardyard.data.multimodal.processor import own_processor
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.engine.checkpoint.files import bad_because, committed_checkpoints, read_manifest, step_of
from shardyard.engine.checkpoint.tensor_files import only_tensors
from shardyard.engine.checkpoint.weights import weights_of_checkpoint
from shardyard.engine.components import Components, held_out, make_components, with_frozen
from shardyard.engine.hooks.evaluate import evaluate
from shardyard.engine.hooks.generate import generate
from shardyard.engine.inference.pictures import answer
from shardyard.engine.inference.recordings import transcripts
from shardyard.engine.inference.spread import is_spread, spread_of
from shardyard.engine.mesh import single_process
from shardyard.errors import CheckpointError, ModelError, RunFolderError, UsageError
from shardyard.models.build import auto_class, construct, module_skeleton
from shardyard.models.export.card import TrainedRun, model_card
from shardyard.models.export.export import export_model
from shardyard.models.fused import fuse_activations
from shardyard.models.outside import load_module_weights, read_config
from shardyard.models.size.measure import measure_recipe
from shardyard.objectives.registry import objective_spec
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.code import lead_to_kept, refuse_code
from shardyard.recipe.earlier import complete
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Recipe
from shardyard.tracking.metrics.record import evaluation_of
from shardyard.tracking.run.folder import RunFolder, read_metrics, typed
from shardyard.units import parse_bytes

DEFAULT_MICRO_BATCH = 8
# Passes of an evaluation between which the standard errors are measured.
_PASSES = 30


@dataclass(frozen=True)
class Trained:
    """A model ready to use, with the recipe and the run that made it."""

    recipe: Recipe
    model: Any
    tokenizer: Any
    device: torch.device
    processor: Any = None
    folder: RunFolder | None = None

    def sample(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        pictures: Sequence[Path] = (),
        report: Callable[[str], None] = lambda text: None,
    ) -> list[str]:
        """The continuation of each prompt; greedy at temperature 0. `report` gets a message if a prompt does not fit.

        For a classifier or tagger of texts, what it predicts for each; for a model of speech, what it hears in each of
        these files, at most `data.sequence_length` tokens.

        `pictures` are the files that a vision–language model is asked about, with every prompt.

        Raises:
            UsageError: a model trained for this objective does not continue text, or reads no pictures.
        """
        if objective_spec(self.recipe.objective).sees and self.processor is not None:
            return [
                answer(
                    self.model,
                    self.processor,
                    prompt,
                    pictures,
                    max_new_tokens=max_new_tokens,
                    device=self.device,
                    temperature=temperature,
                    seed=seed,
                )
                for prompt in prompts
            ]
        if pictures:
            raise UsageError(f"a model trained for {self.recipe.objective} reads no pictures; leave out --image.")
        if objective_spec(self.recipe.objective).hears:
            return transcripts(self.recipe, self.model, self.tokenizer, prompts, self.device)
        if predicts := objective_spec(self.recipe.objective).predicts:
            length = self.recipe.data.sequence_length
            return [plugins.load(predicts)(self.model, self.tokenizer, prompt, length) for prompt in prompts]
        if not objective_spec(self.recipe.objective).generates:
            raise UsageError(
                f"a model trained for {self.recipe.objective} does not continue a prompt; "
                "`shardyard eval RUN` measures it."
            )
        return [
            generate(
                self.model,
                self.tokenizer,
                prompt,
                max_new_tokens=max_new_tokens,
                device=self.device,
                temperature=temperature,
                seed=seed,
                chat=objective_spec(self.recipe.objective).chat,
                report=report,
            )
            for prompt in prompts
        ]

    def evaluate(self, rows: int | None = None) -> dict[str, object]:
        """Loss and the objective's metrics on the run's held-out rows."""
        recipe = self.recipe
        if is_spread(self.model):
            # Logits by chunks use the weights of the head, which may be elsewhere.
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"logits_chunk": 0})})
        components = make_components(
            recipe, tokenizer=self.tokenizer, config=self.model.config, processor=self.processor
        )
        components = with_frozen(recipe, components, self.device)
        file, made_with = (None, None) if self.folder is None else _rows_of_run(self.folder)
        held = held_out(self.recipe, components, rows, file=file, made_with=made_with)
        # Enough passes for standard errors.
        micro_batch = min(self.recipe.train.micro_batch or DEFAULT_MICRO_BATCH, max(1, held.num_rows // _PASSES))
        result = evaluate(self.model, components.objective, held, single_process(self.device), micro_batch=micro_batch)
        errors = {f"{name}_stderr": error for name, error in result.errors.items()}
        return {"loss": result.loss, **result.metrics, "rows": result.rows, "targets": result.targets, **errors}


def load_trained(
    folder: RunFolder,
    step: int | None = None,
    *,
    trust: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Trained:
    """The final model of a run; the model of a checkpoint if `step` is given or no final model exists yet.

    Args:
        trust: load model files that may execute code, and code that the recipe names.
        report: called with a message if the weights do not fit one device.

    Raises:
        UsageError: the recipe names code and is not trusted.
        RunFolderError: the run has neither a final model nor a checkpoint.
        CheckpointError: the checkpoint is damaged, or holds more than tensors.
    """
    final = folder.path / "final"
    if step is None and final.is_dir():
        return _from_folder(folder, final, trust=trust, report=report)
    scratch = tempfile.mkdtemp(prefix="shardyard-")
    forget = partial(shutil.rmtree, scratch, ignore_errors=True)
    try:
        path = export_checkpoint(folder, step, Path(scratch) / "model", trust=trust)
        trained = _from_folder(folder, path, trust=trust, report=report)
    except BaseException:
        forget()
        raise
    if is_spread(trained.model):
        # Its files are read for as long as it is used.
        weakref.finalize(trained.model, forget)
    else:
        forget()
    return trained


def _rows_of_run(folder: RunFolder) -> tuple[Path | None, str | None]:
    """The file of a run's held-out rows, and the fingerprint of the tokenizer that made them; neither without text."""
    tokenizer = folder.info().data.get("tokenizer")
    return (None, None) if tokenizer is None else (folder.held_out, tokenizer)


def _from_folder(folder: RunFolder, path: Path, *, trust: bool, report: Callable[[str], None]) -> Trained:
    transformers_logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_of(folder, trust=trust)
    # A folder of an older version has the tokenizer of training, which need not begin a text as documents begin.
    text = objective_spec(recipe.objective).text
    tokenizer = exported_tokenizer(load_tokenizer(str(path)), recipe.objective) if text else None
    if recipe.model.module is not None:
        model = _module_from_folder(recipe, path).to(device).eval()
        return Trained(recipe, model, tokenizer, device, folder=folder)
    spread = spread_of(path, device)
    places = {} if spread is None else {"device_map": "auto", "max_memory": spread.max_memory}
    if spread is not None:
        report(spread.text)
    # The model was trained in the saved precision; in another precision, another model would be measured.
    with only_tensors(trust=trust):
        model = auto_class(recipe.objective, recipe.model.family).from_pretrained(
            path, dtype="auto", attn_implementation=recipe.model.attention, trust_remote_code=False, **places
        )
    # As it was trained: operations that round otherwise would be measured otherwise.
    fuse_activations(model)
    # The parts of a spread model send each other what they compute.
    device = device if spread is None else model.device
    model = model.to(device) if spread is None else model
    processor = None
    if own_processor_makes_rows(recipe):
        processor = own_processor(recipe.model.family, model.config, tokenizer, recipe.image, str(path))
    elif objective_spec(recipe.objective).sees:
        processor = make_components(recipe, tokenizer=tokenizer, config=model.config).processor
    return Trained(recipe, model.eval(), tokenizer, device, processor, folder)


def _module_from_folder(recipe: Recipe, path: Path) -> Any:
    """The custom module of a recipe with the weights of a folder, in their precision."""
    config = read_config(path)
    if config is None:
        raise RunFolderError(f"{path} has no module weights, which `shardyard export RUN` writes.")
    dtype = config.dtype
    model = construct(recipe.model, config, recipe.objective)
    missing, unexpected = load_module_weights(model, path)
    if missing or unexpected:
        raise ModelError(
            f"the weights in {path} are not those of {recipe.model.module}: missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}; has its code changed since?"
        )
    return model.to(dtype)


def recipe_of(folder: RunFolder, *, trust: bool) -> Recipe:
    """The resolved recipe of a run. It was checked when the run started; its data need not exist here.

    Args:
        trust: accept a recipe that names code, which is executed when components are created from the recipe.

    Raises:
        RunFolderError, RecipeError: the recipe cannot be read.
        UsageError: the recipe names code and is not trusted.
    """
    try:
        fields = YAML(typ="safe", pure=True).load(folder.resolved.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise RunFolderError(f"{folder.resolved} cannot be read: {str(error).splitlines()[0]}") from error
    fields = fields if isinstance(fields, dict) else {}
    complete(fields)
    lead_to_kept(fields, folder.path)
    recipe = parse_recipe(fields, str(folder.resolved))
    if not trust:
        refuse_code(recipe, folder.id)
    return recipe


def export_checkpoint(
    folder: RunFolder, step: int | None, destination: Path, *, trust: bool = False, shard_size: str | None = None
) -> Path:
    """Write a checkpoint (the newest, or that of `step`) as a model folder, weight by weight.

    Args:
        trust: execute code in the files of the checkpoint, and code that the recipe names.
        shard_size: largest file of weights, such as `5GB`. Default: the recipe's.

    Raises:
        UsageError: the recipe names code and is not trusted.
        RunFolderError: the checkpoint does not exist.
        CheckpointError: the checkpoint is damaged, or holds more than tensors.
    """
    checkpoint = pick_checkpoint(folder, step)
    recipe = recipe_of(folder, trust=trust)
    components = make_components(recipe)
    card = card_of(folder, recipe, components, checkpoint)
    tokenizer = components.exported_tokenizer(recipe)
    weights = weights_of_checkpoint(checkpoint, precision=precision_of(recipe), trust=trust)
    return export_model(
        destination,
        config=components.config,
        weights=weights,
        tokenizer=tokenizer,
        processor=components.processor,
        card=card,
        objective=recipe.objective,
        adapter=recipe.model.adapter,
        module=module_skeleton(recipe.model, components.config),
        generates=components.generation(recipe, tokenizer),
        shard_bytes=parse_bytes(shard_size or recipe.checkpoint.shard_size),
    )


def card_of(
    folder: RunFolder, recipe: Recipe, components: Components, checkpoint: Path, *, adapter: bool = False
) -> str:
    """The model card of a checkpoint, or of its adapter alone."""
    manifest, info = read_manifest(checkpoint), folder.info()
    world, done = World(size=manifest["world_size"], gpu=False), manifest["step"]
    plan = make_plan(recipe, measure_recipe(recipe, components.config), world)
    base = info.starting.get("model.pretrained", {}).get("name", recipe.model.pretrained)
    run = TrainedRun(folder.id, done, info.provenance, base)
    return model_card(recipe, plan, run, _measured_at(folder, done), adapter=adapter)


def pick_checkpoint(folder: RunFolder, step: int | None) -> Path:
    """The checkpoint of a step, or the newest good one.

    Raises:
        RunFolderError: it does not exist.
    """
    found = {step_of(path): path for path in committed_checkpoints(folder.checkpoints)}
    if not found:
        raise RunFolderError(
            f"{folder.path} has no final model and no checkpoint yet; "
            f"`shardyard resume {typed(folder.path)}` goes on with it."
        )
    if step is None:
        good = [at for at, path in found.items() if not _is_bad(path)]
        return found[max(good or found)]
    if step not in found:
        raise RunFolderError(
            f"{folder.path} has no checkpoint of step {step}, but of {', '.join(map(str, sorted(found)))}."
        )
    return found[step]


def _is_bad(checkpoint: Path) -> bool:
    try:
        return bad_because(checkpoint) is not None
    except CheckpointError:
        return False


def _measured_at(folder: RunFolder, step: int) -> dict[str, float]:
    lines = [line for line in read_metrics(folder.metrics) if line["step"] <= step]
    return next((found for line in reversed(lines) if (found := evaluation_of(line))), {})
