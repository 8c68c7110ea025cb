"""Texts under ZeRO-3: those of the whole model, whether it is gathered once or for each token, and nobody hangs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from shardyard.data.exported import exported_tokenizer
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.engine.assemble import assemble
from shardyard.engine.deepspeed import generating
from shardyard.engine.deepspeed.generating import ready_to_generate
from shardyard.engine.hooks.generate import generate
from shardyard.engine.hooks.sampling import SampleHook
from shardyard.engine.mesh import make_mesh
from shardyard.engine.run import Job
from shardyard.engine.step import train_step
from shardyard.engine.world import Rank
from shardyard.tracking.metrics.record import StepRecord
from support.ranks import run_ranks
from support.tiny import CONFIGS, tiny_job, tiny_recipe, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
# One ends early, one fills the 64 positions of the model and goes on from its newest part.
PROMPTS = ("the model", "a batch of tokens and a row of data with a seed, the loss")
NEW_TOKENS = 40
EARLY = 3


def all_texts(rank: Rank, jobs: dict[float, Job], end: int) -> dict[float, dict[str, Any]]:
    return {share: texts(rank, job, end, share) for share, job in jobs.items()}


def texts(rank: Rank, job: Job, end: int, share: float) -> dict[str, Any]:
    """What this rank writes of its own prompt, and the hook of a run of all; `share` of the memory is for weights."""
    generating.FREE_SHARE = share
    session = assemble(job.recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    model = session.engine.module
    model.generation_config.eos_token_id = end
    session.engine.eval()
    found: dict[str, Any] = {}
    with ready_to_generate(session.engine, session.mesh) as together:
        found["together"] = together is not None
        found["own"] = generate(
            model,
            session.tokenizer,
            PROMPTS[rank.rank],
            max_new_tokens=NEW_TOKENS,
            device=rank.device,
            together=together,
        )
        found["whole"] = all(parameter.numel() for parameter in model.parameters())
    found["left whole"] = any(parameter.numel() for parameter in model.parameters())
    next(hook for hook in session.hooks if isinstance(hook, SampleHook)).on_step(StepRecord(1, {}))
    session.learning_rate.set(1.0)
    batch = session.next_batch()
    found["losses"] = [train_step(session.engine, session.objective, batch, session.mesh).loss for _ in range(2)]
    session.close()
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose greedy texts vary."""
    config = GPT2Config(**CONFIGS["gpt2"], vocab_size=257, bos_token_id=256, eos_token_id=256)
    model = GPT2LMHeadModel(config)
    random = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.normal_(std=1.5 * parameter.shape[-1] ** -0.5, generator=random)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


def model_of(base: Path, end: int | None) -> Any:
    model = GPT2LMHeadModel.from_pretrained(base).eval()
    model.generation_config.eos_token_id = end
    return model


def early_end(base: Path, tokenizer: Any) -> int:
    """A token that the first text has early, and the second has not: as the end, it makes texts of unequal length."""
    model = model_of(base, None)
    new: list[list[int]] = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        length = min(NEW_TOKENS, 64 - ids.shape[1])
        new.append(
            model.generate(ids, max_new_tokens=length, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        )
    return next(token for token in new[0][EARLY:] if token not in new[1])


def test_texts_of_unequal_length_are_those_of_one_process(base: Path, tmp_path: Path) -> None:
    """Gathered for each token, ranks go on until all are done; gathered once, each is on its own."""
    tokenizer = exported_tokenizer(load_tokenizer("bytes"), "causal_lm")
    end = early_end(base, tokenizer)
    expected = [
        generate(model_of(base, end), tokenizer, prompt, max_new_tokens=NEW_TOKENS, device=torch.device("cpu"))
        for prompt in PROMPTS
    ]
    assert len(expected[0]) < NEW_TOKENS / 2
    recipe = tiny_recipe(
        write_corpus(tmp_path),
        model={"pretrained": str(base), "config": {}},
        sample={"prompts": list(PROMPTS), "max_new_tokens": NEW_TOKENS},
        zero={"stage": 3, "persistence_threshold": 0},
        cluster={"workers": 2},
    )
    jobs = {share: tiny_job(recipe, tmp_path, world_size=2) for share in (0.0, 0.5)}
    everything = run_ranks(2, all_texts, jobs, end)
    for share, job in jobs.items():
        found = [rank[share] for rank in everything]
        assert [rank["own"] for rank in found] == expected
        assert [rank["together"] for rank in found] == [share == 0.0] * 2
        assert [rank["whole"] for rank in found] == [share > 0.0] * 2
        assert not any(rank["left whole"] for rank in found)
        lines = [json.loads(line) for line in (job.folder.path / "samples.jsonl").read_text().splitlines()]
        assert [line["text"] for line in lines] == expected
        events = [json.loads(line) for line in (job.folder.path / "events.jsonl").read_text().splitlines()]
        told = [event["text"] for event in events if event["kind"] == "notice" and "for every token" in event["text"]]
        assert len(told) == (share == 0.0)
    one, other = ([rank[share]["losses"] for rank in everything] for share in jobs)
    assert one == other, "training goes on from the same weights"
    assert one[0][1] < one[0][0]
