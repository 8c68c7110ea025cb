"""Routers of a mixture of experts: their decisions, balancing losses, and load of experts.

Forward hooks on the routers keep values that the pass computes anyway: there is no second pass, and none of the large
outputs that a model keeps in addition with `output_router_logits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from shardyard.models.quirks import recorded_routers
from shardyard.objectives.quirks import is_parallel_layer

# Names of the number of experts in configurations.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# Observations of a micro-batch, which are summed.
_TOKENS, _ENTROPY, _BALANCE = "experts/tokens", "experts/entropy", "experts/balance"
_ROUTED, _CHOICES = "experts/routed", "experts/choices"


@dataclass(frozen=True)
class Route:
    """The decision of one router for N tokens.

    logits: [N, E] over E experts. chosen: [N, k], the experts of each token. sigmoid: whether scores are sigmoids of
    the logits (DeepSeek-V3) instead of their softmax.
    """

    logits: Tensor
    chosen: Tensor
    sigmoid: bool = False

    def probabilities(self) -> Tensor:
        """[N, E] in fp32; each row sums to 1. Sigmoid scores are normalised as in DeepSeek-V3 (equation 20)."""
        if not self.sigmoid:
            return functional.softmax(self.logits.float(), dim=-1)
        return functional.normalize(self.logits.float().sigmoid(), p=1.0, dim=-1)

    def tokens(self) -> Tensor:
        """[E], how many of the N·k choices went to each expert."""
        # Neither a mask nor bincount: their output size depends on values, so the host would wait for the device.
        experts, chosen = self.logits.size(-1), self.chosen.flatten().long()
        counts = torch.zeros(experts + 1, dtype=torch.int64, device=chosen.device)
        return counts.scatter_add_(0, chosen.clamp(max=experts), torch.ones_like(chosen))[:experts]


def num_experts(config: Any) -> int:
    """Number of routed experts of a layer in a transformers configuration; 0 for a dense model."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return next((int(count) for name in EXPERT_COUNTS if (count := getattr(text, name, None))), 0)


@contextmanager
def watching(model: nn.Module) -> Iterator[list[Route]]:
    """A list that the forward pass inside the context fills with one Route for each router, in execution order.

    The hooks are removed before the backward pass, so that passes recomputed by activation checkpointing do not count
    twice. They keep tensors and compute nothing, because the recomputed pass must save the same tensors as the first.
    """
    routes: list[Route] = []
    hooks: list[RemovableHandle] = []
    for router, index in _routers(model):
        if index is None:
            hooks += _watch_parallel(router, routes)
        else:
            hooks.append(router.register_forward_hook(_keeping(routes, index)))
    try:
        yield routes
    finally:
        for hook in hooks:
            hook.remove()


def _routers(model: nn.Module) -> Iterator[tuple[nn.Module, int | None]]:
    """Routers and the index of the logits in their output; None for DeepSpeed's AutoEP, which returns no logits."""
    known = dict(found for module in model.modules() for found in recorded_routers(module))
    for module in model.modules():
        if is_parallel_layer(module):
            yield cast(nn.Module, module.router), None
        elif type(module) in known:
            yield module, known[type(module)]


def _keeping(routes: list[Route], index: int) -> Callable[[nn.Module, Any, Any], None]:
    def keep(router: nn.Module, inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        logits = parts[index] if index < len(parts) else None
        # Some families do not route by one row of scores per token; they train without these metrics.
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            return
        routes.append(Route(logits, _chosen(router, parts, logits), _has_sigmoid(router)))

    return keep


def _chosen(router: nn.Module, parts: tuple[Any, ...], logits: Tensor) -> Tensor:
    """The experts in the router's output or, if it returns none, those with the largest logits."""
    for part in parts:
        if isinstance(part, Tensor) and part.dtype in (torch.int32, torch.int64) and part.dim() == 2:
            return part
    return logits.detach().topk(int(getattr(router, "top_k", 1)), dim=-1).indices


def _has_sigmoid(router: nn.Module) -> bool:
    """Whether a router is like that of DeepSeek-V3, which corrects its choice by a bias and scores with a sigmoid."""
    return getattr(router, "e_score_correction_bias", None) is not None


def _watch_parallel(router: nn.Module, routes: list[Route]) -> list[RemovableHandle]:
    """Watch AutoEP's router, which returns (scores, experts, tokens); the logits come from its linear layer."""
    logits: list[Tensor] = []

    def keep_logits(gate: nn.Module, inputs: Any, output: Tensor) -> None:
        logits.append(output)

    def keep(_: nn.Module, inputs: Any, output: Any) -> None:
        routes.append(Route(logits.pop(), output[1], getattr(router, "score_func", "softmax") == "sigmoid"))

    return [cast(nn.Module, router.gate).register_forward_hook(keep_logits), router.register_forward_hook(keep)]


def balance_loss(routes: Sequence[Route]) -> Tensor:
    """The load-balancing loss of one micro-batch, a mean over layers of E · Σ_e f_e · p_e, a scalar in fp32.

    Fedus et al. 2021 (Switch Transformers), equations 4 to 6: f_e is the number of choices of expert e and p_e its
    probability, both per token. The loss is k if routing is even. Only p has a gradient. Each layer is balanced
    separately: means of f and p over all layers, as in transformers' Mixtral, can be even although each layer neglects
    some experts.
    """
    return torch.stack([_balance(route) for route in routes]).mean()


def _balance(route: Route) -> Tensor:
    tokens, experts = route.logits.shape
    return (route.tokens() / tokens * route.probabilities().mean(dim=0)).sum() * experts


def z_loss(routes: Sequence[Route]) -> Tensor:
    """The router z-loss, a sum over tokens of the mean over layers of (log Σ_e e^logit)², a scalar in fp32.

    Zoph et al. 2022 (ST-MoE), equation 5. It keeps logits small, which 16-bit precision requires.
    """
    squares = [torch.logsumexp(route.logits.float(), dim=-1).square().sum() for route in routes]
    return torch.stack(squares).mean()


def observe(routes: Sequence[Route]) -> dict[str, Tensor]:
    """Sums over a micro-batch of N tokens and L layers, from which `expert_metrics` are computed."""
    with torch.no_grad():
        rows, device = routes[0].logits.size(0), routes[0].logits.device
        return {
            _TOKENS: torch.stack([route.tokens() for route in routes]),  # [L, E]
            _ENTROPY: torch.stack([_entropy(route.probabilities()) for route in routes]),  # [L]
            _CHOICES: torch.full((), sum(route.chosen.numel() for route in routes), device=device),
            _ROUTED: torch.full((), rows, device=device),
            _BALANCE: balance_loss(routes) * rows,
        }


def _entropy(probabilities: Tensor) -> Tensor:
    total: Tensor = torch.special.entr(probabilities).sum()
    return total


def expert_metrics(observed: Mapping[str, Tensor]) -> dict[str, float]:
    """How evenly experts are used in a global batch or an evaluation; empty for a model without experts.

    Loads are relative to an even share: 1 is even, E/k means that all tokens use the same k experts.
    """
    if _TOKENS not in observed:
        return {}
    tokens, rows = observed[_TOKENS], max(1.0, float(observed[_ROUTED]))
    layers, experts = tokens.shape
    load = tokens * experts / tokens.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = float(observed[_ENTROPY].sum()) / (layers * rows)
    return {
        "moe/load_max": float(load.max()),
        "moe/load_min": float(load.min()),
        "moe/entropy": entropy,
        "moe/entropy_relative": entropy / math.log(experts) if experts > 1 else 0.0,
        "moe/dead_experts": float((tokens == 0).sum()),
        "moe/dropped": float(observed[_CHOICES] - tokens.sum()),
        "moe/balance_loss": float(observed[_BALANCE]) / rows,
    }


def expert_table(observed: Mapping[str, Tensor]) -> dict[str, float]:
    """`moe/tokens/layer_00/expert_00` → number of tokens routed there; only layers with experts are numbered."""
    table = observed[_TOKENS].tolist() if _TOKENS in observed else []
    return {
        f"moe/tokens/layer_{layer:02}/expert_{expert:02}": count
        for layer, counts in enumerate(table)
        for expert, count in enumerate(counts)
    }
