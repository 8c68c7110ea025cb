"""An opponent of `step_time.py`: transformers' Trainer with DeepSpeed, as its documentation has it.

It knows nothing of Shardyard: model, tokens and turns are files that `step_time.py` has made, settings those of
`bare_deepspeed.py`. Its batches are in memory, and it logs every step, as the platform records every step. Started by
torchrun; rank r writes its times and losses to `trainer-<r>.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from bare_deepspeed import configuration, optimizer_of
from torch import distributed
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from turns import Turns


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows of this rank, batch after batch."""

    def __init__(self, batches: list[tuple[torch.Tensor, ...]]) -> None:
        self._columns = [torch.cat(column) for column in zip(*batches, strict=True)]

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        names = ("input_ids", "labels", "position_ids")
        return {name: column[index] for name, column in zip(names, self._columns, strict=True)}


class OwnRows(Trainer):
    """A Trainer whose ranks read their own rows, in order, and whose labels are shifted already."""

    def get_train_dataloader(self) -> Any:
        """One micro-batch after another; each rank has a data set of its own, so none is divided."""
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=self.args.per_device_train_batch_size)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """The mean over the tokens of a micro-batch, all of which are targets."""
        logits = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().view(-1, logits.size(-1)), inputs["labels"].view(-1))
        return (loss, logits) if return_outputs else loss


class Clock(TrainerCallback):
    """Times of steps, and turns between them."""

    def __init__(self, turns: Turns) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._turns, self._before = turns, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the first turn; later ones are waited for at the end of steps."""
        if not self.seconds:
            self._turns.begin()
            self._before = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step ends with its log, which every step has."""
        if "loss" not in (logs or {}):
            return
        self.losses.append(float(logs["loss"]))
        self.seconds.append(time.perf_counter() - self._before)
        self._turns.after(len(self.seconds))
        self._before = time.perf_counter()


def main() -> None:
    """Train through all steps."""
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # An operation that only inference uses would be compiled for half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    batches = torch.load(folder / f"batches-{rank}.pt")
    clock = Clock(Turns(folder, "trainer", rank, task["block"], task["arms"]))
    settings = TrainingArguments(
        output_dir=str(folder / f"trainer-{rank}"),
        max_steps=len(batches),
        per_device_train_batch_size=task["micro_batch"],
        gradient_accumulation_steps=task["accumulation"],
        max_grad_norm=task["gradient_clipping"],
        learning_rate=task["lr"],
        lr_scheduler_type="constant",
        bf16=task["precision"] == "bf16",
        deepspeed=configuration(task),
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    optimizer = optimizer_of(model, task)
    trainer = OwnRows(
        model=model, args=settings, train_dataset=Rows(batches), callbacks=[clock], optimizers=(optimizer, None)
    )
    trainer.train()
    (folder / f"trainer-{rank}.json").write_text(json.dumps({"seconds": clock.seconds, "losses": clock.losses}))
    distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
