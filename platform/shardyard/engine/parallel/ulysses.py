"""Attention of rows whose tokens are shared by several ranks: DeepSpeed Ulysses in the models of transformers.

Outside attention each rank computes its part of a row. Within it, an all-to-all gives each rank all tokens of some
heads (Jacobs et al. 2023), and another one brings the results back.

    B: rows, T: tokens of a row, P: ranks that share it, H: heads
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shardyard.engine.mesh import Axis
from shardyard.errors import ModelError

CORE = "sdpa"
NAME = "shardyard_ulysses"


class SharedAttention:
    """The attention function of all layers of a model.

    DeepSpeed's own registration changes transformers' `sdpa` for every model of the process, and drops masks. This one
    has a name of its own, and a mask of the whole row where its documents must not see each other.
    """

    def __init__(self, config: Any, axis: Axis, *, split_heads: int) -> None:
        """`axis`: the ranks that share a row; `split_heads`: tensor-parallel ranks, each of which has a part of the
        heads."""
        text = config.get_text_config()
        self._heads = text.num_attention_heads // split_heads
        self._key_heads = (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) // split_heads
        self._width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._layers, self._axis = text.num_hidden_layers, axis
        self._by_rows: dict[int, UlyssesSPAttentionHF] = {}
        self._whole = False
        self._positions: Tensor | None = None
        self._mask: Tensor | None = None

    def begin(self, positions: Tensor | None) -> None:
        """Begin a micro-batch. `positions`: [B, T] of whole rows whose documents are kept apart; else None."""
        self._positions, self._mask = positions, None

    @contextmanager
    def whole_rows(self) -> Iterator[None]:
        """Context in which each rank has whole rows, such as a prompt that all ranks continue alike."""
        self._whole = True
        try:
            yield
        finally:
            self._whole = False

    def mask(self, *args: Any, **options: Any) -> Tensor | None:
        """transformers' mask of a part of a row would be useless; that of whole rows is the usual one."""
        return sdpa_mask(*args, **options) if self._whole else None

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`query`, `key`, `value`: [B, H, T/P, …] → [B, T/P, H, …]."""
        if self._whole:
            plain: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS[CORE]
            return plain(module, query, key, value, attention_mask, **options)
        # DeepSpeed gathers position ids for FlashAttention.
        options["position_ids"] = torch.zeros(query.shape[0], query.shape[2], dtype=torch.long, device=query.device)
        groups = getattr(module, "num_key_value_groups", None)
        try:
            found: tuple[Tensor, Tensor | None] = self._of(len(query))(
                module, query, key, value, self._documents(), **options
            )
        finally:
            if groups is not None:
                module.num_key_value_groups = groups  # DeepSpeed changes it where ranks share a head of keys.
        output, weights = found
        return output.view(*output.shape[:2], self._heads, self._width), weights

    def _of(self, rows: int) -> UlyssesSPAttentionHF:
        if rows not in self._by_rows:
            made = UlyssesSPAttentionHF(
                attn=ALL_ATTENTION_FUNCTIONS[CORE],
                batch_size=rows,
                attn_head_count=self._heads,
                attn_head_size=self._width,
                kv_head_count=self._key_heads,
                num_hidden_layers=self._layers,
                process_group=self._axis.group,
                seq_length_is_variable=True,
            )
            made.core_attn_implementation = CORE
            self._by_rows[rows] = made
        return self._by_rows[rows]

    def _documents(self) -> Tensor | None:
        """Whether a token sees another one, [B, 1, T, T]; None if it sees all before it."""
        if self._positions is None:
            return None
        if self._mask is None:
            begins = self._positions.diff(prepend=self._positions[:, :1] - 1) != 1  # [B, T]
            document = begins.cumsum(-1)
            self._mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        return self._mask


def share_attention(model: PreTrainedModel, axis: Axis, *, split_heads: int, length: int) -> SharedAttention:
    """Make the attention of a model work on rows of `length` tokens that the ranks of `axis` share.

    Raises:
        ModelError: its layers look back over fewer tokens, which needs a mask that Ulysses has not.
    """
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window is not None and window < length and getattr(text, "use_sliding_window", True):
        raise ModelError(
            f"tokens of this model see the {window} before them (sliding_window), and rows of {length} tokens that "
            "several ranks share have no such mask; set parallel.sequence to 1, or shorten the rows."
        )
    shared = SharedAttention(model.config, axis, split_heads=split_heads)
    AttentionInterface.register(NAME, shared)
    AttentionMaskInterface.register(NAME, shared.mask)
    model.set_attn_implementation(NAME)
    return shared
