"""A copy of the inputs of a row format for each reader that shares its memory with others."""

from __future__ import annotations

import copy
from dataclasses import replace

from shardyard.data.formats.inputs import FormatInputs


def each_its_own(inputs: FormatInputs, readers: int) -> list[FormatInputs]:
    """The inputs, and copies with tokenizers and processors of their own for further readers.

    A fast tokenizer that truncates or pads is changed by each call, and fails if another thread calls it meanwhile.
    """
    return [inputs, *(_copied(inputs) for _ in range(readers - 1))]


def _copied(inputs: FormatInputs) -> FormatInputs:
    # Together, because a processor holds the tokenizer.
    tokenizer, processor = copy.deepcopy((inputs.tokenizer, inputs.processor))
    return replace(inputs, tokenizer=tokenizer, processor=processor)
