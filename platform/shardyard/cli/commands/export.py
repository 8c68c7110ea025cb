"""`shardyard export` and `push`: a trained model as files, and on a hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli.commands.trained import Step, Trust
from shardyard.cli.options import RunName, RunsDir
from shardyard.cli.view import output
from shardyard.errors import UsageError
from shardyard.suggest import suggestion
from shardyard.tracking.run.folder import RunFolder, runs_folder
from shardyard.units import format_bytes, parse_bytes


def export(
    run: RunName,
    destination: Annotated[
        Path | None,
        typer.Argument(help="Output folder, or file with --gguf. Default: final, adapter or RUN.gguf in RUN."),
    ] = None,
    step: Step = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the LoRA adapter alone, for peft and vLLM, instead of merging it.")
    ] = False,
    gguf: Annotated[
        str | None, typer.Option("--gguf", metavar="TYPE", help="Write a GGUF file: auto, f32, f16, bf16 or q8_0.")
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Largest file of weights, e.g. 5GB. Default: checkpoint.shard_size.",
        ),
    ] = None,
    trust: Trust = False,
    runs_dir: RunsDir = None,
) -> None:
    """Write a checkpoint as a folder that from_pretrained loads: safetensors, tokenizer and a model card."""
    folder = RunFolder.open(runs_folder(runs_dir), run)
    if destination is not None and destination.exists():
        raise UsageError(f"{destination} exists already; name another folder.")
    if adapter and gguf is not None:
        raise UsageError("--adapter and --gguf exclude each other: a GGUF file holds the merged model.")
    if shard_size is not None:
        _check_size(shard_size, adapter or gguf is not None)
    if gguf is not None:
        output.line(str(_as_gguf(folder, destination or folder.path / f"{folder.id}.gguf", gguf, step, trust)))
    elif adapter:
        from shardyard.engine.inference.adapter import export_adapter

        written = export_adapter(folder, step, destination or folder.adapter, trust=trust)
        output.line(str(written))
        _note_servers(written)
    else:
        from shardyard.engine.inference.load import export_checkpoint

        written = export_checkpoint(
            folder, step, destination or folder.path / "final", trust=trust, shard_size=shard_size
        )
        output.line(str(written))


def _check_size(size: str, is_one_file: bool) -> None:
    if is_one_file:
        raise UsageError("--max-shard-size is for folders of a whole model: an adapter and a GGUF file are one file.")
    try:
        parse_bytes(size)
    except ValueError as error:
        raise UsageError(f"--max-shard-size: {error}.") from error


def _as_gguf(folder: RunFolder, destination: Path, kind: str, step: int | None, trust: bool) -> Path:
    from shardyard.models.export.gguf import TYPES, convert, find_converter

    if kind not in TYPES:
        raise UsageError(f"--gguf {kind}: {suggestion(kind, TYPES)}")
    converter = find_converter()  # before the weights are read
    with _model_folder(folder, step, trust) as model:
        return convert(model, destination, kind, converter=converter)


def push(
    run: RunName,
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository of the hub; created if missing.")],
    step: Step = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Send the LoRA adapter alone.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Create a repository that everybody can read; by default it is private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch to commit to. Default: main.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
    trust: Trust = False,
    runs_dir: RunsDir = None,
) -> None:
    """Send a trained model to a hub (huggingface_hub); the token is HF_TOKEN or a login, HF_ENDPOINT another hub."""
    folder = RunFolder.open(runs_folder(runs_dir), run)
    from shardyard.models.export.hub import planned_upload
    from shardyard.models.export.hub import push as send

    with _model_folder(folder, step, trust, adapter=adapter) as model:
        if adapter:
            _note_servers(model, others=True)
        upload = planned_upload(model, repository, private=not public)
        size = f"{len(upload.files)} files, {format_bytes(upload.num_bytes)}"
        if dry_run:
            output.print_table(("file", "size"), [(name, format_bytes(n)) for name, n in upload.files.items()])
            output.line(f"{size} would go to {repository} ({'public' if public else 'private'})")
            return
        output.note(f"sending {size} to {repository}")
        output.line(send(model, upload, message=f"{folder.id}, trained with Shardyard", revision=revision))


def _note_servers(adapter: Path, *, others: bool = False) -> None:
    """Say what vLLM does not load of an adapter, and if `others` are to load it, that they lack its base model."""
    from shardyard.models.adapters.servers import left_out_by_vllm, local_base

    found = left_out_by_vllm(adapter)
    if found:
        output.note(f"for vLLM: {'; '.join(found)}. `shardyard export RUN` writes a merged model.")
    base = local_base(adapter) if others else None
    if base is not None:
        output.note(
            f"the base model of this adapter is {base}, a folder of this machine: others need it too. Push it, and set "
            "base_model_name_or_path in adapter_config.json to its name."
        )


@contextmanager
def _model_folder(folder: RunFolder, step: int | None, trust: bool, *, adapter: bool = False) -> Iterator[Path]:
    """The exported model of a run: its final/, or a checkpoint that is exported for as long as it is needed."""
    if not adapter and step is None and (folder.path / "final").is_dir():
        yield folder.path / "final"
        return
    with tempfile.TemporaryDirectory(prefix="shardyard-") as scratch:
        if adapter:
            from shardyard.engine.inference.adapter import export_adapter

            yield export_adapter(folder, step, Path(scratch) / "adapter", trust=trust)
        else:
            from shardyard.engine.inference.load import export_checkpoint

            yield export_checkpoint(folder, step, Path(scratch) / "model", trust=trust)
