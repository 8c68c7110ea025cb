"""Whether a teacher was trained with the student's tokens."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shardyard.errors import ModelError


def check_same_tokens(teacher: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that ids of a teacher mean the tokens that they mean for the student, as far as both have them.

    A teacher without a tokenizer of its own is taken to have the student's.

    Args:
        teacher: folder or hub id (`org/name@revision`).
        tokenizer: the student's.

    Raises:
        ModelError: an id stands for another token.
    """
    folder = Path(teacher).expanduser()
    name, _, revision = (str(folder), "", "") if folder.is_dir() else teacher.partition("@")
    try:
        theirs = AutoTokenizer.from_pretrained(name, revision=revision or "main").get_vocab()
    except (OSError, ValueError, KeyError):
        return
    tokens = {id: token for token, id in theirs.items()}
    ours = {id: token for token, id in tokenizer.get_vocab().items()}
    different = sorted(id for id in tokens.keys() & ours.keys() if tokens[id] != ours[id])
    if different:
        first = different[0]
        raise ModelError(
            f"distillation.teacher: {teacher} has another vocabulary than the student: {len(different)} of "
            f"{len(ours)} ids stand for other tokens, the first of them {first}: {tokens[first]!r} for the teacher and "
            f"{ours[first]!r} for the student. Use the teacher's tokenizer, or a teacher with this one."
        )
