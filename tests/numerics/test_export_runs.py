"""What leaves a run that added tokens, or trained an adapter: the same at every ZeRO stage and number of ranks."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from shardyard.cli.commands.export import export
from shardyard.engine.checkpoint.weights import CheckpointWeights
from shardyard.engine.components import make_components
from shardyard.engine.inference.adapter import export_adapter
from shardyard.engine.inference.load import load_trained
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import UsageError
from shardyard.launch.run.initial import locate
from shardyard.models.adapters.adapters import attach
from shardyard.models.build import construct_pretrained
from shardyard.models.export import layout
from shardyard.tracking.run.folder import read_metrics
from support.pretrained import write_pretrained
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

PROMPT = "the model "


@dataclass(frozen=True)
class Runs:
    """Trained runs: `plain` by ZeRO stage and ranks, `adapted` with an adapter instead of all weights, `embedded` with
    an adapter and embeddings that are tied to the head."""

    plain: dict[tuple[int, int], Job]
    adapted: Job
    embedded: Job


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    corpus, base = write_corpus(folder), write_pretrained(folder / "base", "llama")

    def job(stage: int, ranks: int, base: Path = base, shard_size: str = "5GB", **model: object) -> Job:
        recipe = tiny_recipe(
            corpus,
            family="llama",
            added_tokens=["<|im_start|>", "<|im_end|>"],
            model={"pretrained": str(base), "config": {}, "vocabulary_multiple": 8, **model},
            train={"steps": 4},
            schedule={"warmup": 1},
            optimizer={"lr": 1e-2},
            checkpoint={"every": 4, "shard_size": shard_size},
            evaluate={"every": 4},
            sample={"prompts": [PROMPT], "max_new_tokens": 8},
            zero={"stage": stage},
            cluster={"workers": ranks},
        )
        return tiny_job(recipe, folder / "out", world_size=ranks)

    frozen = {"freeze": ["model.layers.0.*"]}
    shards = {0: "5GB", 2: "20KB", 3: "20KB"}
    plain = {
        (stage, ranks): job(stage, ranks, shard_size=shards[stage], **frozen)
        for stage, ranks in ((0, 1), (2, 2), (3, 2))
    }
    adapted = job(3, 2, adapter={"rank": 4})
    tied = write_pretrained(folder / "tied", "llama", tie_word_embeddings=True)
    embedded = job(3, 2, tied, adapter={"rank": 24, "targets": ["q_proj"], "modules_to_save": ["lm_head.weight"]})
    run_ranks(1, _train, [plain[0, 1]])
    run_ranks(2, _train, [plain[2, 2], plain[3, 2], adapted, embedded])
    return Runs(plain, adapted, embedded)


def _train(rank: Rank, jobs: list[Job]) -> None:
    for job in jobs:
        run_rank(job, rank)


def events(job: Job, kind: str) -> list[dict[str, str]]:
    lines = map(json.loads, (job.folder.path / "events.jsonl").read_text().splitlines())
    return [event for event in lines if event["kind"] == kind]


def test_new_rows_are_the_same_at_every_stage_and_number_of_ranks(runs: Runs) -> None:
    curves = [[line["train/loss"] for line in read_metrics(job.folder.metrics)] for job in runs.plain.values()]
    assert len(curves[0]) == 4
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-5)
    tables = [
        AutoModelForCausalLM.from_pretrained(job.folder.path / "final").get_input_embeddings().weight
        for job in runs.plain.values()
    ]
    assert tables[0].shape[0] == 264
    for table in tables[1:]:
        torch.testing.assert_close(table, tables[0], rtol=1e-4, atol=1e-6)
    for job in runs.plain.values():
        (told,) = (event["text"] for event in events(job, "notice") if "embeddings" in event["text"])
        assert "change from 257 to 264 rows; new ones begin as the mean of the others" in told


def test_a_checkpoint_is_exported_as_the_model_of_its_run(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one process or from all ranks, from whole weights or from parts, in one file or in several; by weights."""
    monkeypatch.setattr(layout, "PIECE_BYTES", 1)
    at_once: list[int] = []
    read = CheckpointWeights.read

    def noted(self: CheckpointWeights, names: Sequence[str], keepers: Collection[int]) -> Mapping[str, Tensor]:
        found = read(self, names, keepers)
        at_once.append(sum(tensor.nbytes for tensor in found.values()))
        return found

    monkeypatch.setattr(CheckpointWeights, "read", noted)
    for (stage, _), job in runs.plain.items():
        final = weights_in(job.folder.final)
        assert len(list(job.folder.final.glob("*.safetensors"))) == (1 if stage == 0 else 7)
        for size in ("5GB", "9KB"):
            exported = tmp_path / f"{stage}-{size}"
            export(str(job.folder.path), exported, step=4, shard_size=size)
            found = weights_in(exported)
            assert found.keys() == final.keys()
            assert all(torch.equal(found[name], final[name]) for name in final)
            assert (exported / "model.safetensors.index.json").exists() == (size == "9KB")
        assert max(at_once) == max(tensor.nbytes for tensor in final.values()), "never two weights in memory"


def test_a_size_that_is_none_is_refused(runs: Runs, tmp_path: Path) -> None:
    run = str(runs.plain[0, 1].folder.path)
    with pytest.raises(UsageError, match="--max-shard-size: '5 gigabytes' is not a size; write it as 80GiB"):
        export(run, tmp_path / "model", shard_size="5 gigabytes")
    with pytest.raises(UsageError, match="an adapter and a GGUF file are one file"):
        export(run, tmp_path / "model", adapter=True, shard_size="5GB")


def weights_in(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_a_sample_in_training_is_what_the_export_writes(runs: Runs) -> None:
    for job in runs.plain.values():
        (line,) = map(json.loads, (job.folder.path / "samples.jsonl").read_text().splitlines())
        again = load_trained(job.folder).sample([PROMPT], max_new_tokens=8, temperature=0.0, seed=0)
        piped = pipeline("text-generation", model=str(job.folder.path / "final"), device="cpu")
        (made,) = piped(PROMPT, max_new_tokens=8, do_sample=False, return_full_text=False)
        assert [line["text"]] == again == [made["generated_text"]]


def test_peft_loads_the_adapter_alone(runs: Runs, tmp_path: Path) -> None:
    from peft import PeftModel

    job = runs.adapted
    (told,) = (event["text"] for event in events(job, "notice") if "embeddings" in event["text"])
    assert told.endswith("and stay so; name the embeddings in model.adapter.modules_to_save to train them")
    path = export_adapter(job.folder, None, tmp_path / "adapter")
    config = json.loads((path / "adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    assert base == job.recipe.model.pretrained
    merged = AutoModelForCausalLM.from_pretrained(job.folder.path / "final").eval()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path).eval()
    ids = torch.tensor([[256, *b"the model"]])
    with torch.no_grad():
        logits = adapted(input_ids=ids).logits
        torch.testing.assert_close(logits, merged(input_ids=ids).logits[..., :257], rtol=1e-4, atol=1e-4)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(input_ids=ids).logits, logits, atol=1e-3), "the adapter does something"
    # What vLLM reads: its names of LoRA tensors, and nothing that it refuses.
    with safe_open(path / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert names
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 16.0)
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    assert set(config["target_modules"]) == {name.split(".")[-3] for name in names}
    assert len(AutoTokenizer.from_pretrained(path)) == 259
    card = (path / "README.md").read_text()
    assert "library_name: peft" in card
    assert "base.resize_token_embeddings(264)" in card


def test_an_embedding_trained_beside_an_adapter_leaves_with_its_tied_head(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    job = runs.embedded
    path = tmp_path / "adapter"
    export(str(job.folder.path), path, adapter=True)
    told = capsys.readouterr().err
    assert "for vLLM: vLLM loads no modules that are trained in full (lm_head, model.embed_tokens); its rank 24" in told
    base = AutoModelForCausalLM.from_pretrained(str(job.recipe.model.pretrained))
    base.resize_token_embeddings(264)
    merged = AutoModelForCausalLM.from_pretrained(job.folder.final).eval()
    adapted = PeftModel.from_pretrained(base, path).eval()
    ids = torch.tensor([[256, *b"the model", 257, 258]])
    with torch.no_grad():
        expected = merged(input_ids=ids).logits
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(input_ids=ids).logits, expected, atol=1e-2)


def test_another_run_continues_the_adapter_of_a_run_by_its_name(runs: Runs) -> None:
    job, runs_dir = runs.adapted, runs.adapted.folder.path.parent
    job.folder.update(state="finished", starting=locate(job.recipe, runs_dir)[1])
    assert job.recipe.model.adapter is not None
    adapter = job.recipe.model.adapter.model_copy(update={"pretrained": f"run:{job.recipe.name}"})
    model = job.recipe.model.model_copy(update={"adapter": adapter})
    located, _ = locate(job.recipe.model_copy(update={"model": model}), runs_dir)
    found = located.model.adapter
    assert found is not None
    assert found.pretrained == str(job.folder.adapter)
    config = make_components(located).config
    continued = construct_pretrained(located.model, config, "causal_lm", seed=1).model
    attach(continued, found, objective="causal_lm", seed=1)
    merged = AutoModelForCausalLM.from_pretrained(job.folder.final).eval()
    ids = torch.tensor([[256, *b"the model"]])
    with torch.no_grad():
        expected = merged(input_ids=ids).logits
        torch.testing.assert_close(continued.eval()(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_run_without_an_adapter_has_none_to_export(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"trained no adapter \(model\.adapter\); `shardyard export "):
        export_adapter(runs.plain[0, 1].folder, None, tmp_path / "adapter")
