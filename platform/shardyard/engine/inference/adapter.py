"""Exporting the adapter of a checkpoint alone, in peft's format."""

from __future__ import annotations

from pathlib import Path

from shardyard.engine.checkpoint.weights import weights_of_checkpoint
from shardyard.engine.components import make_components
from shardyard.engine.inference.load import card_of, pick_checkpoint, recipe_of
from shardyard.errors import UsageError
from shardyard.models.adapters.adapters import fully_trained
from shardyard.models.adapters.saved import save_adapter
from shardyard.models.build import construct_pretrained, skeleton
from shardyard.models.export.export import write_folder
from shardyard.recipe.precision import precision_of
from shardyard.tracking.run.folder import RunFolder, typed


def export_adapter(folder: RunFolder, step: int | None, destination: Path, *, trust: bool = False) -> Path:
    """Write the adapter of a checkpoint (the newest, or that of `step`), with tokenizer and model card.

    Args:
        destination: replaced if it exists.
        trust: execute code in the files of the checkpoint, and code that the recipe names.

    Raises:
        UsageError: the run trained no adapter, or the recipe names code and is not trusted.
        RunFolderError: the checkpoint does not exist.
        CheckpointError: the checkpoint is damaged, or holds more than tensors.
        ModelError: the adapter cannot stand alone (PiSSA over quantised weights).
    """
    recipe = recipe_of(folder, trust=trust)
    adapter, base = recipe.model.adapter, recipe.model.pretrained
    if adapter is None or base is None:
        raise UsageError(
            f"{folder.id} trained no adapter (model.adapter); `shardyard export {typed(folder.path)}` writes the model."
        )
    checkpoint = pick_checkpoint(folder, step)
    components = make_components(recipe)
    model = skeleton(recipe.model, components.config, recipe.objective)
    start = None
    if adapter.init != "kaiming":
        seed = recipe.train.seed
        start = construct_pretrained(recipe.model, components.config, recipe.objective, seed=seed).model.state_dict()
    weights = weights_of_checkpoint(checkpoint, precision=precision_of(recipe), trust=trust)
    card = card_of(folder, recipe, components, checkpoint, adapter=True)
    tokenizer = components.exported_tokenizer(recipe)

    def write(partial: Path) -> None:
        save_adapter(
            partial,
            weights=weights,
            adapter=adapter,
            model=model,
            trained=[name for name, _ in fully_trained(model, adapter, recipe.objective)],
            base=_base_name(base),
            start=start,
        )
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")

    return write_folder(destination, write)


def _base_name(name: str) -> str:
    """The name by which peft finds the base model: a hub id without its revision, or the path of a folder."""
    return name if Path(name).expanduser().is_dir() else name.partition("@")[0]
