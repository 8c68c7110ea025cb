"""What depends on the devices of a host is asked where a run is planned, and never by `validate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard import hardware
from shardyard.cli.main import run
from shardyard.errors import RecipeError
from shardyard.launch.run.host import refuse_on_this_host
from shardyard.launch.run.plans import plan_of
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe

BARE, FP16, SILENT = "flags\t\t: fpu avx2 avx512_bf16\n", "flags\t\t: fpu avx512_fp16\n", ""
TEXT = """\
name: asked
model: {{family: gpt2, config: {{n_layer: 1, n_head: 1, n_embd: 8, n_positions: 16, vocab_size: 257}}{attention}}}
objective: causal_lm
tokenizer: bytes
data: {{sequence_length: 16, train: [{{source: python-docs}}]}}
train: {{steps: 2, global_batch: 2, precision: {precision}}}
optimizer: {{name: adamw, lr: 1e-3}}
cluster: {cluster}
"""
FLASH = ", attention: flash_attention_2"
RECIPES = {
    "fp16": TEXT.format(attention="", precision="fp16", cluster="{workers: 1}"),
    "fp16 on no GPU": TEXT.format(attention="", precision="fp16", cluster="{workers: 1, gpus_per_worker: 0}"),
    "flash": TEXT.format(attention=FLASH, precision="bf16", cluster="{workers: 1}"),
    "half a GPU each": TEXT.format(attention="", precision="bf16", cluster="{workers: 2, gpus_per_worker: 0.5}"),
    "flash on no GPU": TEXT.format(attention=FLASH, precision="bf16", cluster="{workers: 1, gpus_per_worker: 0}"),
}


def _pretend(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, gpu: bool, accelerator: str | None) -> None:
    monkeypatch.setattr(hardware, "read_cpuinfo", lambda: cpuinfo)
    monkeypatch.setattr(hardware, "has_gpu", lambda: gpu)
    monkeypatch.setattr(hardware, "CHOSEN_ACCELERATOR", accelerator)


@pytest.mark.parametrize("name", RECIPES)
def test_validate_gives_one_verdict_whatever_the_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.yaml"
    path.write_text(RECIPES[name], encoding="utf-8")
    verdicts = set()
    for cpuinfo in (BARE, FP16, SILENT):
        for gpu in (False, True):
            for accelerator in (None, "cpu"):
                _pretend(monkeypatch, cpuinfo, gpu, accelerator)
                verdicts.add((run(["validate", str(path)]), *capsys.readouterr()))
    [(code, _, message)] = verdicts
    assert code == (2 if name == "flash on no GPU" else 0), message


def _recipe(name: str, tmp_path: Path) -> Recipe:
    path = tmp_path / "asked.yaml"
    path.write_text(RECIPES[name], encoding="utf-8")
    return load_recipe(str(path)).recipe


@pytest.mark.parametrize(
    ("name", "cpuinfo", "gpu", "says"),
    [
        ("fp16", BARE, False, "train.precision: fp16 would run on the CPU here, which has no fp16 arithmetic"),
        ("fp16", FP16, False, None),
        ("fp16", SILENT, False, None),
        ("fp16", BARE, True, None),
        ("flash", FP16, False, "model.attention: flash_attention_2 needs a GPU; use sdpa on the CPU"),
        ("flash", BARE, True, None),
    ],
)
def test_a_host_refuses_what_its_devices_cannot(
    name: str, cpuinfo: str, gpu: bool, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, cpuinfo, gpu, None)
    recipe = _recipe(name, tmp_path)
    if says is None:
        refuse_on_this_host(recipe, gpu=gpu)
        return
    with pytest.raises(RecipeError) as refused:
        refuse_on_this_host(recipe, gpu=gpu, source="asked.yaml")
    assert says in str(refused.value)
    assert str(refused.value).startswith("asked.yaml: 1 problem")


def test_a_plan_for_this_host_asks_it_and_one_for_elsewhere_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, BARE, False, "cpu")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "asked.yaml"
    path.write_text(RECIPES["fp16"], encoding="utf-8")
    loaded = load_recipe(str(path))
    with pytest.raises(RecipeError, match="fp16 would run on the CPU here"):
        plan_of(loaded)
    assert plan_of(loaded, elsewhere=True).precision == "fp16"
