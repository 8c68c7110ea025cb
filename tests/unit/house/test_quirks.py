"""Private names of libraries, and patches of them, lie in the quirks modules alone: read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from support.module_graph import PACKAGE

LIBRARIES = {"deepspeed", "ray", "datasets", "transformers", "huggingface_hub", "peft", "wandb"}
# Names that exist under one library alone, wherever the object comes from.
KNOWN_PRIVATE = {"_attn_implementation", "_can_record_outputs", "_copy_recovery_script"}
KNOWN_PRIVATE |= {"_init_weights", "_is_autoep_layer", "_is_hf_initialized", "_set_model_specific_special_tokens"}
KNOWN_PRIVATE |= {"_zero3_consolidated_16bit_state_dict"}
KNOWN_PRIVATE |= {"_optimizer_states_and_gradient_swap_in", "_optimizer_states_and_gradient_swap_out"}
KNOWN_PRIVATE |= {"_get_norm_groups", "_swappable_optimizer_subgroup"}


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each private name of a library, patch of one, or use of `unittest.mock`."""
    tree = ast.parse(source)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imported(node, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            if node.attr in KNOWN_PRIVATE or _root(node) in names:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and node.value in KNOWN_PRIVATE:
            yield node.lineno, str(node.value)
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Attribute) and _root(target) in names:
                    yield node.lineno, f"{ast.unparse(target)} = …"


def _imported(node: ast.Import | ast.ImportFrom, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Faults of an import; `names` learns what it brings of a library."""
    for alias in node.names:
        whole = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
        if isinstance(node, ast.ImportFrom) and node.level:
            continue
        if whole.startswith("unittest"):
            yield node.lineno, whole
        if whole.partition(".")[0] in LIBRARIES:
            bound = alias.asname or alias.name
            names[bound if isinstance(node, ast.ImportFrom) or alias.asname else bound.partition(".")[0]] = whole
            if any(map(_is_private, whole.split("."))):
                yield node.lineno, whole


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.slow
def test_private_names_and_patches_lie_in_quirks_modules() -> None:
    found = {
        name: [f"{name}:{line}: {what}" for line, what in faults((PACKAGE / name).read_text(encoding="utf-8"))]
        for name in MODULES
    }
    quirks = {name for name in MODULES if name.endswith("quirks.py")}
    assert {"data/quirks.py", "engine/deepspeed/quirks.py", "launch/ray/quirks.py", "models/quirks.py"} <= quirks
    assert all(found[name] for name in quirks)
    wrong = [fault for name, some in found.items() if name not in quirks for fault in some]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private import services",
        "import ray._raylet",
        "import ray\nray._private.worker",
        "def f():\n    from huggingface_hub.utils._http import client",
        "import datasets\ndatasets.config.RETRIES = 1",
        "import deepspeed.ops as ops\nops.table = {}",
        "from unittest import mock",
        "import unittest.mock",
        "getattr(config, '_attn_implementation', '')",
        "engine._copy_recovery_script = None",
        "from transformers import modeling_utils\nmodeling_utils._load()",
    ],
)
def test_a_private_name_is_seen(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize(
    "source", ["import ray\nray.init()", "self._x = 1", "from datasets import load", "os._exit(1)"]
)
def test_a_public_name_is_none(source: str) -> None:
    assert list(faults(source)) == []
