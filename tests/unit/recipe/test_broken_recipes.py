"""Every way to get a recipe wrong that people have: each ends in a message with line, value and remedy."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardyard.cli.main import run
from support.waiting import PATIENCE_SECONDS

GOOD = """\
name: broken
model:
  family: gpt2
  config: {n_layer: 2, n_head: 2, n_embd: 64, n_positions: 128}
tokenizer: bytes
data:
  sequence_length: 128
  train:
    - {source: python-docs}
train: {steps: 100, global_batch: 8, precision: bf16}
optimizer: {name: adamw, lr: 1e-3}
schedule: {name: cosine, warmup: 10}
zero: {stage: 1}
cluster: {workers: 2, gpus_per_worker: 0}
"""


@dataclass(frozen=True)
class Broken:
    """A recipe made of GOOD by one replacement, or given whole, with overrides; and what must be said about it."""

    name: str
    expected: str
    old: str = ""
    new: str = ""
    whole: bytes | None = None
    overrides: tuple[str, ...] = ()

    def content(self) -> bytes:
        if self.whole is not None:
            return self.whole
        assert not self.old or self.old in GOOD
        return GOOD.replace(self.old, self.new, 1).encode() if self.old else (GOOD + self.new).encode()


def junk(size: int) -> bytes:
    return random.Random(0).randbytes(size)


SCHEMA = [
    Broken("typo", ":10: train.stpes: unknown key 'stpes'; did you mean 'steps'?", "steps: 100", "stpes: 100"),
    Broken("typo-top", ":12: shedule: unknown key 'shedule'; did you mean 'schedule'?", "schedule:", "shedule:"),
    Broken("misplaced", ":15: lr: unknown key 'lr'; did you mean 'optimizer.lr'?", new="lr: 1e-3\n"),
    Broken("odd-key", ":15: zzzqqq: unknown key 'zzzqqq'; valid: name, description", new="zzzqqq: 1\n"),
    Broken("text-number", "train.steps: must be a whole number, got 'many' (text)", "steps: 100", "steps: many"),
    Broken("fraction", ":10: train.steps: must be a whole number, got 2.0; write 2", "steps: 100", "steps: 2.0"),
    Broken("bool-int", ":10: train.steps: must be a whole number, got true", "steps: 100", "steps: true"),
    Broken("bool-choice", ":13: zero.stage: must be one of 0, 1, 2, 3, got true", "stage: 1", "stage: true"),
    Broken("yes", ":3: model.compile: must be true or false, got 'yes' (text)", "  family", "  compile: yes\n  family"),
    Broken("zero", ":10: train.global_batch: must be at least 1, got 0", "global_batch: 8", "global_batch: 0"),
    Broken("negative-lr", ":11: optimizer.lr: must be more than 0.0, got -0.1", "lr: 1e-3", "lr: -0.1"),
    Broken("infinite-lr", ":11: optimizer.lr: .inf is not a finite number", "lr: 1e-3", "lr: .inf"),
    Broken("huge", ":10: train.steps: 100000000000000000000000… is too large", "steps: 100", "steps: 1" + "0" * 99),
    Broken("choice", "must be one of fp32, bf16 or fp16, got 'bf61' (text); did you mean 'bf16'?", "bf16", "bf61"),
    Broken(
        "workers-range",
        ":14: cluster.workers: must be a whole number, got a list of 2",
        "workers: 2",
        "workers: [4, 16]",
    ),
    Broken(
        "memory",
        "cluster.memory_per_worker: must be a size such as 80GiB or 500MB, got '80'",
        "workers: 2",
        "workers: 2, memory_per_worker: '80'",
    ),
    Broken("bad-name", ":1: name: must be 1 to 80 letters, digits, '.', '_' or '-'", "name: broken", "name: a b"),
    Broken("missing-name", ":1: name: is missing: Name of the run", "name: broken\n", ""),
    Broken("missing-lr", ":11: optimizer.lr: is missing: Peak learning rate", ", lr: 1e-3", ""),
    Broken("null-required", ":11: optimizer.lr: must be a number, got null", "lr: 1e-3", "lr: null"),
    Broken(
        "section-as-text",
        ":2: model: must be a section of keys (family, config, ",
        "model:\n  family: gpt2\n  config: {n_layer: 2, n_head: 2, n_embd: 64, n_positions: 128}",
        "model: gpt2",
    ),
    Broken(
        "no-sources",
        ":8: data.train: must have at least 1 entries, got a list of 0",
        "train:\n    - {source: python-docs}",
        "train: []",
    ),
    Broken("unquoted", ":15: description: must be text (in quotes", new="description: 3\n"),
]
FILES = [
    Broken(
        "duplicate",
        ":11: name: the key is given twice, on lines 1 and 11; keep one",
        "optimizer:",
        "name: x\noptimizer:",
    ),
    Broken(
        "duplicate-below",
        ":10: train.steps: the key is given twice, on lines 10 and 10",
        "steps: 100",
        "steps: 1, steps: 2",
    ),
    Broken("unclosed", ":12: is not valid YAML: while parsing a flow mapping", "lr: 1e-3}", "lr: 1e-3"),
    Broken("tab", ":3: has a tab where YAML wants spaces", "  family", "\tfamily"),
    Broken("empty", ".yaml: is empty; a recipe needs at least name, model", whole=b""),
    Broken("comment-only", ".yaml: is empty", whole=b"# nothing\n"),
    Broken("list", ":1: holds a list where a recipe is a mapping", whole=b"- name: x\n"),
    Broken("scalar", ":1: holds a single value where", whole=b"just words\n"),
    Broken("two-documents", "a second document", new="---\nname: y\n"),
    Broken("binary", "is a binary file (a zero byte at offset", whole=b"name: x\n\0\0\0"),
    Broken(
        "latin-1",
        ":2: is not UTF-8 text (byte 0xe9 at offset 19)",
        whole="name: x\ndescription: é\n".encode("latin-1")[:9] + b"0123456789\xe9",
    ),
    Broken("control", ":2: holds the control character", whole=b"name: x\n\x07\n"),
    Broken("too-large", "is larger than 1 MiB", whole=b"a" * (2**20 + 1)),
    Broken("megabyte-of-noise", "is a binary file", whole=junk(2**20)),
    Broken("megabyte-of-keys", "is more than 10000 values", whole=b"".join(b"k%d: 1\n" % n for n in range(90_000))),
    Broken("deep", "40 levels", whole=b"a: " + b"[" * 100_000),
    Broken(
        "bomb",
        "expands through aliases to more than 10000 values",
        whole=b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 104)),
    ),
    Broken("self-alias", ":1: contains itself through an alias", whole=b"a: &a [*a]\n"),
    Broken(
        "tag",
        ":1: name: the tag !!python/name:os.system is not supported",
        "name: broken",
        "name: !!python/name:os.system x",
    ),
    Broken("number-key", ":15: the key 3 is not text; put it in quotes", new="3: x\n"),
    Broken("half-pair", ":1: name: holds half of a surrogate pair", "name: broken", 'name: "\\ud800"'),
    Broken("merge-key", "merge keys (<<) are not part of YAML 1.2", new="<<: {a: 1}\n"),
    Broken("yaml-1.1", "has a % directive", whole=b"%YAML 1.1\n---\n" + GOOD.encode()),
]
OVERRIDES = [
    Broken("no-equals", "-s train.steps: is not path.to.key=value", overrides=("train.steps",)),
    Broken("no-path", "-s =3: is not path.to.key=value", overrides=("=3",)),
    Broken(
        "unknown-path",
        "-s train.stps=3: train.stps: unknown key 'stps'; did you mean 'steps'?",
        overrides=("train.stps=3",),
    ),
    Broken("leaf-only", "-s steps=3: steps: unknown key 'steps'; did you mean 'train.steps'?", overrides=("steps=3",)),
    Broken("below-value", "-s name.x=3: name.x: unknown key 'x'", overrides=("name.x=3",)),
    Broken(
        "no-such-entry",
        "data.train has 1 entries, so its indices are 0 to 0; got '3'",
        overrides=("data.train.3.weight=1",),
    ),
    Broken(
        "unset-list",
        "data.validation is not set in this recipe, so it has no entry 0",
        overrides=("data.validation.0.path=x",),
    ),
    Broken("bad-value", "-s train.steps=many: train.steps: must be a whole number", overrides=("train.steps=many",)),
    Broken("bad-yaml", "-s train.steps=[1: train.steps: is not valid YAML", overrides=("train.steps=[1",)),
    Broken(
        "reset-required", "-s optimizer.lr=: optimizer.lr: must be a number, got null", overrides=("optimizer.lr=",)
    ),
]
CONTRADICTIONS = [
    Broken("no-length", ":10: train: has no length; give train.steps, train.tokens or", "steps: 100, ", ""),
    Broken("only-minutes", "or train.epochs: the upper limit for `minutes`", "steps: 100", "minutes: 3"),
    Broken("three-lengths", "steps and tokens and epochs all set", "steps: 100", "steps: 100, tokens: 5, epochs: 1"),
    Broken("no-epochs", "train.epochs: must be more than 0", "steps: 100", "epochs: 0.0"),
    Broken("two-lengths", ":10: train.tokens: steps and tokens both set", "steps: 100", "steps: 100, tokens: 5"),
    Broken(
        "batch-workers",
        ":10: train.global_batch: 7 rows cannot be shared by 2 workers; set a multiple of 2 such as 8",
        "global_batch: 8",
        "global_batch: 7",
    ),
    Broken(
        "micro-batch",
        ":10: train.micro_batch: 3 does not divide the 4 rows of each worker (8 / 2); 2 does",
        "steps: 100",
        "steps: 100, micro_batch: 3",
    ),
    Broken(
        "streams",
        ":7: data.streams: 3 is not divisible by 2 workers; set it to 4",
        "sequence_length: 128",
        "streams: 3\n  sequence_length: 128",
    ),
    Broken(
        "positions",
        ":7: data.sequence_length: 512 tokens are more than the 128 positions of the model; set model.config.n_pos",
        "sequence_length: 128",
        "sequence_length: 512",
    ),
    Broken(
        "default-positions",
        "2000 tokens are more than the 1024 positions",
        ", n_positions: 128}\ntokenizer: bytes\ndata:\n  sequence_length: 128",
        "}\ntokenizer: bytes\ndata:\n  sequence_length: 2000",
    ),
    Broken(
        "family",
        ":3: model.family: transformers has no model of type 'gtp2' for the objective causal_lm; did you mean 'gpt2'?",
        "gpt2",
        "gtp2",
    ),
    Broken(
        "config-key",
        ":4: model.config.n_layers: unknown key 'n_layers' of gpt2; did you mean 'n_layer'?",
        "n_layer",
        "n_layers",
    ),
    Broken(
        "config-type",
        ":4: model.config.n_layer: must be a whole number, got 'two' (text)",
        "n_layer: 2",
        "n_layer: two",
    ),
    Broken(
        "config-float",
        "layer_norm_epsilon: must be a decimal number, got 1; write 1.0",
        "n_layer: 2",
        "layer_norm_epsilon: 1",
    ),
    Broken(
        "config-twice", "model.config.hidden_size: means the same as n_embd in gpt2", "n_layer: 2", "hidden_size: 64"
    ),
    Broken(
        "activation",
        "transformers has no activation 'gleu_new'; did you mean 'gelu_new'?",
        "n_layer: 2",
        "activation_function: gleu_new",
    ),
    Broken("heads", ":4: model.config.n_embd: n_embd 64 is not divisible by n_head 3; 63 is", "n_head: 2", "n_head: 3"),
    Broken(
        "dropout-twice",
        "model.config.resid_pdrop: is 0.3, but model.dropout sets every dropout to 0.1",
        "family: gpt2\n  config: {n_layer: 2",
        "family: gpt2\n  dropout: 0.1\n  config: {resid_pdrop: 0.3",
    ),
    Broken(
        "use-cache",
        "model.config.use_cache: keeps what activation_checkpointing drops",
        "family: gpt2\n  config: {n_layer: 2",
        "family: gpt2\n  activation_checkpointing: true\n  config: {use_cache: true",
    ),
    Broken(
        "offloaded-activations-of-a-compiled-model",
        "model.offload_activations: keeps inputs of layers outside of what model.compile compiles",
        "family: gpt2\n  config: {n_layer: 2",
        "family: gpt2\n  compile: true\n  activation_checkpointing: full\n  offload_activations: true\n"
        "  config: {n_layer: 2",
    ),
    Broken(
        "vocabulary",
        "model.config.vocab_size: 100 is less than the 257 entries of the tokenizer bytes",
        "n_layer: 2",
        "vocab_size: 100",
    ),
    Broken(
        "tokenizer",
        ":5: tokenizer: 'byte' is neither a spec in tokenizers/, a path nor a hub id (org/name); did you mean 'bytes'?",
        "tokenizer: bytes",
        "tokenizer: byte",
    ),
    Broken("tokenizer-path", ":5: tokenizer: no file or folder './nope'", "tokenizer: bytes", "tokenizer: ./nope"),
    Broken(
        "pretrained", "model.pretrained: no folder './weights'", "family: gpt2", "family: gpt2\n  pretrained: ./weights"
    ),
    Broken(
        "pretrained-id",
        "model.pretrained: 'my weights' is neither a folder here nor a hub id",
        "family: gpt2",
        "family: gpt2\n  pretrained: my weights",
    ),
    Broken(
        "offload-stage-0",
        ":13: zero.offload_optimizer: needs ZeRO stage 1, 2 or 3",
        "stage: 1",
        "stage: 0, offload_optimizer: true",
    ),
    Broken(
        "offload-parameters",
        ":13: zero.offload_parameters: needs ZeRO stage 3, not 1",
        "stage: 1",
        "stage: 1, offload_parameters: true",
    ),
    Broken(
        "offload-muon",
        "DeepSpeed has no CPU kernel for muon",
        "name: adamw, lr: 1e-3}\nschedule: {name: cosine, warmup: 10}\nzero: {stage: 1",
        "name: muon, lr: 1e-3}\nzero: {stage: 1, offload_optimizer: true",
    ),
    Broken(
        "reduced-in-fp16",
        ":13: zero.communication_data_type: has the narrow range of fp16",
        "stage: 1",
        "stage: 1, communication_data_type: fp16",
    ),
    Broken(
        "added-up-in-fp16",
        ":13: zero.grad_accum_dtype: is fp16, and train.precision bf16: use fp32",
        "stage: 1",
        "stage: 1, grad_accum_dtype: fp16",
    ),
    Broken(
        "muon-clipped",
        "train.gradient_clipping: is 1, but with muon DeepSpeed would clip its orthogonalised updates",
        "name: adamw, lr: 1e-3",
        "name: muon, lr: 1e-3",
    ),
    Broken(
        "muon-experts",
        "optimizer.name: DeepSpeed's muon takes only matrices in bf16 at stage 1; mixtral has experts: use stage 2",
        whole=GOOD.replace("gpt2", "mixtral")
        .replace("{n_layer: 2, n_head: 2, n_embd: 64, n_positions: 128}", "{hidden_size: 64}")
        .replace("adamw", "muon")
        .encode(),
    ),
    Broken(
        "warmup",
        ":12: schedule.warmup: 100 steps of warm-up take all of the 100 steps",
        "warmup: 10",
        "warmup: 100",
    ),
    Broken(
        "warmup-percent",
        "schedule.warmup: must be whole steps from 0 on, or a share of the run such as 0.1, got '10%' (text); write",
        "warmup: 10",
        "warmup: 10%",
    ),
    Broken("warmup-float", "or a share of the run such as 0.1, got 10.0; write 10", "warmup: 10", "warmup: 10.0"),
    Broken("warmup-true", "or a share of the run such as 0.1, got true", "warmup: 10", "warmup: true"),
    Broken(
        "wsd-overlap",
        ":12: schedule.decay_fraction: is 0.95: the decay (95 steps) would begin before the warm-up (10 steps) ends, "
        "and the rate would jump; together they may be at most the 100 steps of training",
        "name: cosine, warmup: 10",
        "name: wsd, warmup: 10, decay_fraction: 0.95",
    ),
    Broken(
        "wsd-overlap-shares",
        "the decay (0.6) would begin before the warm-up (0.5) ends, and the rate would jump; together they may be",
        "name: cosine, warmup: 10",
        "name: wsd, warmup: 0.5, decay_fraction: 0.6",
    ),
    Broken("warmup-tokens", "take all of the 10 steps", "steps: 100", "tokens: 10240"),
    Broken("step-size", ":12: schedule.name: the step schedule needs schedule.step_size", "name: cosine", "name: step"),
    Broken(
        "step-size-cosine",
        ":12: schedule.step_size: does nothing for cosine, only for step",
        "warmup: 10",
        "step_size: 10",
    ),
    Broken(
        "decay-fraction",
        ":12: schedule.decay_fraction: does nothing for cosine, only for wsd",
        "warmup: 10",
        "decay_fraction: 0.5",
    ),
    Broken(
        "min-ratio", "schedule.min_ratio: does nothing for constant", "name: cosine", "name: constant, min_ratio: 0.5"
    ),
    Broken(
        "nesterov",
        ":11: optimizer.nesterov: does nothing for adamw, only for sgd",
        "lr: 1e-3",
        "lr: 1e-3, nesterov: true",
    ),
    Broken(
        "nesterov-momentum",
        "optimizer.nesterov: needs momentum above 0",
        "adamw, lr: 1e-3",
        "sgd, lr: 1e-3, nesterov: true, momentum: 0.0",
    ),
    Broken(
        "betas", "optimizer.betas: must be at least 0 and less than 1 each", "lr: 1e-3", "lr: 1e-3, betas: [0.9, 1.5]"
    ),
    Broken("no-source", ":9: data.train.0: names no data; give `source`", "{source: python-docs}", "{weight: 2.0}"),
    Broken(
        "two-sources",
        ":9: data.train.0.path: a source has either `source` or `path`",
        "source: python-docs",
        "source: python-docs, path: a/b",
    ),
    Broken(
        "corpus",
        ":9: data.train.0.source: no embedded corpus or dataset 'python-dosc'; did you mean 'python-docs'?",
        "python-docs",
        "python-dosc",
    ),
    Broken(
        "corpus-column",
        "data.train.0.text_column: the embedded python-docs has no columns",
        "python-docs}",
        "python-docs, text_column: body}",
    ),
    Broken("corpus-config", "data.train.0.config: is for hub datasets", "python-docs}", "python-docs, config: en}"),
    Broken(
        "corpus-holdout",
        "data.train.0.holdout: python-docs has its own validation split",
        "python-docs}",
        "python-docs, holdout: 0.1}",
    ),
    Broken(
        "corpus-split", "has the splits train and validation, not 'test'", "python-docs}", "python-docs, split: test}"
    ),
    Broken(
        "adapter-pattern",
        "model.adapter.targets.0: '*_proj' is no regular expression: nothing to repeat",
        "family: gpt2",
        "family: gpt2\n  pretrained: org/name\n  adapter: {targets: ['*_proj']}",
    ),
    Broken(
        "adapter-loraplus",
        "model.adapter.loraplus_ratio: sets learning rates that muon sets itself",
        "family: gpt2",
        "family: gpt2\n  pretrained: org/name\n  adapter: {loraplus_ratio: 4.0}",
        overrides=("optimizer.name=muon",),
    ),
    Broken(
        "adapter-init",
        "model.adapter.init: does nothing beside model.adapter.pretrained, which has the values; remove it",
        "family: gpt2",
        "family: gpt2\n  pretrained: org/name\n  adapter: {init: pissa, pretrained: ./adapter}",
    ),
    Broken(
        "wsd-jump",
        "the decay (90 steps) would begin before the warm-up (50 steps) ends, and the rate would jump",
        "name: cosine, warmup: 10",
        "name: wsd, warmup: 50, decay_fraction: 0.9",
    ),
    Broken(
        "no-file",
        ":9: data.train.0.path: no file or folder matches './no/*.jsonl'",
        "source: python-docs",
        "path: ./no/*.jsonl, holdout: 0.1",
    ),
    Broken(
        "nothing-held-out",
        ":6: data.validation: nothing is held out; add data.validation",
        "source: python-docs",
        "path: org/name",
    ),
    Broken(
        "leak",
        "data.validation.0: is the data that data.train reads",
        "- {source: python-docs}",
        "- {path: org/name}\n  validation:\n    - {path: org/name, split: train}",
    ),
    Broken(
        "leak-holdout",
        "data.validation.0.holdout: is 0.2, but 0.1 on the same source",
        "- {source: python-docs}",
        "- {path: org/name, holdout: 0.1}\n  validation:\n    - {path: org/name, holdout: 0.2}",
    ),
    Broken(
        "leak-corpus",
        "data.validation.0: is the split that data.train reads",
        "- {source: python-docs}",
        "- {source: python-docs}\n  validation:\n    - {source: python-docs, split: train}",
    ),
    Broken(
        "metric",
        "evaluate.early_stopping.metric: 'loss' is not a metric of causal_lm",
        new="evaluate: {early_stopping: {patience: 2, metric: loss}}\n",
    ),
    Broken(
        "flash-cpu",
        "model.attention: flash_attention_2 needs a GPU",
        "family: gpt2",
        "family: gpt2\n  attention: flash_attention_2",
    ),
    Broken(
        "loss-scale",
        "train.initial_loss_scale: only fp16 has a loss scale, not bf16",
        "steps: 100",
        "steps: 100, initial_loss_scale: 8",
    ),
    Broken(
        "heads-groups",
        "num_attention_heads 4 is not divisible by num_key_value_heads 3",
        "family: gpt2\n  config: {n_layer: 2, n_head: 2, n_embd: 64, n_positions: 128}",
        "family: llama\n  config: {hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 3}",
    ),
]
BROKEN = [*SCHEMA, *FILES, *OVERRIDES, *CONTRADICTIONS]


def validate(path: Path, overrides: tuple[str, ...] = ()) -> int:
    return run(["validate", str(path), *(part for text in overrides for part in ("-s", text))])


def test_the_recipe_that_all_others_are_made_of_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    assert validate(path) == 0
    assert capsys.readouterr().out == f"ok: broken ({path})\n"


def test_heads_may_share_more_than_the_hidden_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zamba.yaml"
    gpt2 = "family: gpt2\n  config: {n_layer: 2, n_head: 2, n_embd: 64, n_positions: 128}"
    assert gpt2 in GOOD
    path.write_text(
        GOOD.replace(gpt2, "family: zamba\n  config: {hidden_size: 58, num_attention_heads: 4, num_key_value_heads: 4}")
    )
    assert validate(path) == 0, capsys.readouterr().err


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_a_broken_recipe_is_named_with_line_value_and_remedy(
    case: Broken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(case.content())
    assert validate(path, case.overrides) == 2
    shown = capsys.readouterr()
    assert case.expected in shown.err
    assert "Traceback" not in shown.err
    assert "bug in Shardyard" not in shown.err
    assert shown.out == ""
    assert shown.err.startswith(f"Error: {path}: ")


def test_the_table_is_as_large_as_it_claims() -> None:
    names = [case.name for case in BROKEN]
    assert len(names) == len(set(names))
    assert len(names) >= 100


@pytest.mark.parametrize("name", ["nowhere.yaml", "gpt/quickstrt", "", "a" * 5000, "nul\0byte"])
def test_a_recipe_that_is_not_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", name]) == 2
    assert "no such file, nor a shipped recipe" in capsys.readouterr().err


def test_a_directory_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(tmp_path)]) == 2
    assert "is a directory; name a recipe file in it" in capsys.readouterr().err


def test_problems_of_all_kinds_come_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace("lr: 1e-3", "rl: 1e-3").replace("stage: 1", "stage: 1, offload_parameters: true")
    path = tmp_path / "many.yaml"
    path.write_text(text.replace("warmup: 10", "warmup: 500") + "extra: 1\nname: again\n")
    assert validate(path, ("cluster.wrkers=3",)) == 2
    shown = capsys.readouterr().err
    assert f"{path}: 7 problems" in shown
    for part in ("name: the key", "500 steps of warm-up", "'rl'", "lr: is missing", "stage 3", "'extra'", "'wrkers'"):
        assert part in shown, part


def test_several_recipes_are_judged_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(GOOD + "x: 1\n")
    assert run(["validate", str(tmp_path / "bad.yaml"), str(tmp_path / "good.yaml")]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("ok: broken")
    assert "bad.yaml:15" in shown.err


HEAVY = ("torch", "ray", "deepspeed", "transformers", "datasets", "wandb")


@pytest.mark.parametrize(("content", "code"), [(GOOD, 0), (GOOD.replace("gpt2", "gtp2"), 2)], ids=["valid", "invalid"])
def test_validating_imports_nothing_heavy(content: str, code: int, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('heavy:', [m for m in {HEAVY} if m in sys.modules]))\n"
        f"sys.argv = ['shardyard', 'validate', {str(path)!r}]\n"
        "from shardyard.cli.main import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == code, done.stderr
    assert "heavy: []" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(junk(4096))
    command = [sys.executable, "-m", "shardyard.cli.main", "validate", "bad.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=PATIENCE_SECONDS)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: bad.yaml: 1 problem")
    assert "Traceback" not in done.stderr
