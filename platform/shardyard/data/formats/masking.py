"""The masking of BERT: chooses the tokens of a row that are masked and predicted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from shardyard.data.formats.sentences import Ints, special_id
from shardyard.data.stream.packing import IGNORED
from shardyard.recipe.schema import Masking

MASKED, RANDOM = 0.8, 0.1


class Masker:
    """Of the chosen tokens, 80% become the mask token, 10% a random one, 10% stay (Devlin et al. 2018, section 3.1).

    Special tokens, including the unknown token, are never chosen, and random tokens are never special.

    Raises:
        DataError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: Masking) -> None:
        self._settings = settings
        self._mask = special_id(tokenizer, "mask_token")
        ids = np.array(sorted(tokenizer.get_vocab().values()), dtype=np.int64)
        added = [id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special]
        special = np.array(sorted({*tokenizer.all_special_ids, *added}), dtype=np.int64)
        self._ordinary = np.setdiff1d(ids, special)
        self._is_special = np.zeros(int(ids.max()) + 1, dtype=bool)
        self._is_special[special] = True

    def hide(self, tokens: Ints, words: Ints, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """The model's inputs, and labels that are -100 except at chosen tokens; [T] each.

        Args:
            tokens: [T], with special tokens.
            words: [T], a number per token that differs between neighbouring words.
        """
        inputs, labels = tokens.copy(), np.full_like(tokens, IGNORED)
        chosen = self._choose(tokens, words, generator)
        labels[chosen] = tokens[chosen]
        draws = generator.random(len(chosen))
        inputs[chosen[draws < MASKED]] = self._mask
        random = chosen[(draws >= MASKED) & (draws < MASKED + RANDOM)]
        inputs[random] = generator.choice(self._ordinary, len(random))
        return inputs, labels

    def _choose(self, tokens: Ints, words: Ints, generator: np.random.Generator) -> Ints:
        candidates = np.flatnonzero(~self._is_special[tokens])
        if not len(candidates):
            return candidates
        number = max(1, round(self._settings.probability * len(candidates)))
        if self._settings.whole_word:
            return _whole_words(candidates, words, number, generator)
        return generator.choice(candidates, number, replace=False)


def _whole_words(candidates: Ints, words: Ints, number: int, generator: np.random.Generator) -> Ints:
    """Whole words in random order, up to `number` tokens but at least one word."""
    begins = np.flatnonzero((np.diff(words[candidates]) != 0) | (np.diff(candidates) != 1)) + 1
    groups: list[npt.NDArray[np.int64]] = np.split(candidates, begins)
    order = generator.permutation(len(groups))
    chosen: list[Ints] = []
    room = number
    for index in order:
        if len(groups[index]) <= room:
            chosen.append(groups[index])
            room -= len(groups[index])
        if not room:
            break
    return np.concatenate(chosen or [groups[order[0]]])
