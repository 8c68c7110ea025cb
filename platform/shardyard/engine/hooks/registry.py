"""Hooks that a recipe names: from installed packages (entry points `shardyard.hooks`) or from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from shardyard import plugins
from shardyard.engine.hooks.base import EventLog, Hook
from shardyard.engine.mesh import Mesh
from shardyard.engine.world import Rank
from shardyard.errors import UsageError
from shardyard.recipe.schema import Recipe
from shardyard.suggest import suggestion


@dataclass(frozen=True)
class HookInputs:
    """The inputs of a custom hook.

    model: the trained module; under ZeRO-3 each rank holds a part of every weight.
    mesh: this rank with its device, and the axes to sum or gather along.
    events: the log to which it reports; only rank 0's events reach the run folder.
    """

    recipe: Recipe
    model: nn.Module
    mesh: Mesh
    events: EventLog

    @property
    def rank(self) -> Rank:
        """This rank among all."""
        return self.mesh.here


HookFactory = Callable[..., Hook]
"""Called with `HookInputs` and the recipe's options by name; a subclass of `Hook` is one."""


def outside_hooks(inputs: HookInputs, taken: Iterable[str]) -> list[Hook]:
    """The hooks of the recipe's section `hooks`, in its order.

    Args:
        taken: names of the run's other hooks.

    Raises:
        UsageError: a hook cannot be imported or created, or its name is taken.
    """
    names, made = set(taken), list[Hook]()
    for chosen in inputs.recipe.hooks:
        hook = _make(inputs, chosen.name, chosen.options)
        hook.every = chosen.every
        if hook.name in names:
            raise UsageError(
                f"hooks: two hooks of this run are called {hook.name!r}; a checkpoint keeps states by name."
            )
        names.add(hook.name)
        made.append(hook)
    return made


def _make(inputs: HookInputs, name: str, options: Mapping[str, object]) -> Hook:
    reference = plugins.find("hooks", name)
    if reference is None:
        raise UsageError(f"hooks: there is no hook {name!r}; {suggestion(name, plugins.installed('hooks'))}")
    factory: HookFactory = plugins.load(reference)
    try:
        hook = factory(inputs, **options)
    except TypeError as error:
        raise UsageError(f"hooks: {name} does not take the options {options}: {error}") from error
    if not isinstance(hook, Hook) or not isinstance(getattr(hook, "name", None), str):
        raise UsageError(f"hooks: {reference} gives no Hook with a name but {type(hook).__name__}; see docs/hooks.md.")
    return hook
