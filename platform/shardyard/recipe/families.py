"""The model types of `transformers`, read from its sources without importing it.

Importing transformers also imports torch and takes a second; parsing its sources takes milliseconds. Only literals are
read: a computed default is unknown here, and nothing is checked against it.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from shardyard.objectives.spec import ObjectiveSpec

# Fields that the base class handles for every family.
_COMMON = frozenset(
    {
        "rope_parameters",
        "rope_theta",
        "rope_scaling",
        "partial_rotary_factor",
        "num_labels",
        "torch_dtype",
        "output_attentions",
        "attn_implementation",
        "experts_implementation",
        "name_or_path",
        "per_layer_config",
        "tie_last_hidden_states",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "use_cache",
        "vocab_size",
        "initializer_range",
    }
)
_KINDS = frozenset({"int", "float", "str", "bool", "list", "dict", "tuple", "None"})

_UNDECLARED = {'getattr(config, "head_dim"': "head_dim", "=config.num_key_value_heads": "num_key_value_heads"}


@dataclass(frozen=True)
class ConfigFields:
    """The configuration class of one family.

    names: accepted keys, including standard names. defaults: defaults that are literals. attribute_map: standard name →
    the family's own name. kinds: names of the types (`int`, `None`, …) of fields annotated with plain types.
    """

    names: frozenset[str]
    defaults: Mapping[str, Any]
    attribute_map: Mapping[str, str]
    kinds: Mapping[str, frozenset[str]]

    def own_name(self, standard_name: str) -> str:
        """The family's own name: `max_position_embeddings` → `n_positions`."""
        return self.attribute_map.get(standard_name, standard_name)


@dataclass
class _Class:
    defaults: dict[str, object] = field(default_factory=dict)
    attribute_map: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, frozenset[str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def families_with(objective: ObjectiveSpec) -> frozenset[str]:
    """Model types that an objective supports."""
    names = families_with_head(objective)
    if objective.source_length:
        names = frozenset(name for name in names if config_value(name, {}, "is_encoder_decoder"))
    return (names if objective.families is None else names & objective.families) | _with_other_heads(objective)


def video_processor_name(family: str) -> str | None:
    """The class of a family's video processor; transformers hides the names where torchvision is missing."""
    found: Any = _literal(_models() / "auto" / "auto_mappings.py", "VIDEO_PROCESSOR_MAPPING_NAMES").get(family)
    return found.get("torchvision") if isinstance(found, dict) else None


def _table(name: str) -> frozenset[str]:
    """The model types of a table of `modeling_auto.py`."""
    return frozenset(_literal(_models() / "auto" / "modeling_auto.py", name) or {})


def families_with_head(objective: ObjectiveSpec) -> frozenset[str]:
    """Model types for which transformers has the head of an objective, whether or not the objective supports them."""
    names = _table(objective.head[1])
    found = names & frozenset().union(*map(_table, objective.tables)) if objective.tables else names
    return found | _with_other_heads(objective)


def _with_other_heads(objective: ObjectiveSpec) -> frozenset[str]:
    return frozenset(name for name, head in objective.other_heads.items() if name in _table(head[1]))


def all_families() -> frozenset[str]:
    """Every model type of transformers."""
    return frozenset(_config_classes())


def activation_names() -> frozenset[str]:
    """Valid values of hidden_act and activation_function."""
    for node in _parse(_models().parent / "activations.py").body:
        if isinstance(node, ast.Assign) and _target(node) == "ACT2CLS" and isinstance(node.value, ast.Dict):
            return frozenset(str(_evaluate(key)) for key in node.value.keys if key is not None)
    return frozenset()


@cache
def config_fields(family: str) -> ConfigFields | None:
    """The fields of a family's configuration; None if its sources have an unusual layout."""
    class_name = _config_classes().get(family)
    path = _config_file(family)
    if class_name is None or path is None:
        return None
    found = _collect(path, class_name, frozenset())
    if found is None:
        return None
    names = found.names | found.attribute_map.keys() | _COMMON | _read_besides(path)
    return ConfigFields(frozenset(names), found.defaults, found.attribute_map, found.kinds)


def config_value(family: str, config: Mapping[str, Any], standard_name: str) -> Any | None:
    """The value of a standard name in a configuration: from `config`, else the family's default, else None.

    `config_value("gpt2", {}, "max_position_embeddings")` is 1024, the default of GPT-2's `n_positions`.
    """
    fields = config_fields(family)
    own = fields.own_name(standard_name) if fields is not None else standard_name
    for name in (own, standard_name):
        if name in config:
            return config[name]
    return fields.defaults.get(own) if fields is not None else None


def _read_besides(path: Path) -> frozenset[str]:
    """Keys that a model reads although its configuration does not declare them: the width of an attention head, and
    the number of heads for keys and values."""
    modeling = path.with_name(path.name.replace("configuration_", "modeling_"))
    text = modeling.read_text(encoding="utf-8") if modeling.is_file() else ""
    return frozenset(name for read, name in _UNDECLARED.items() if read in text)


def _models() -> Path:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None, "transformers is a dependency"
    assert spec.origin is not None, "transformers is a package with files"
    return Path(spec.origin).parent / "models"


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _target(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


@cache
def _literal(path: Path, name: str) -> dict[str, str]:
    """The value of `NAME = OrderedDict([(key, value), …])` or a dictionary, with later `NAME.update({…})`."""
    found: dict[str, str] = {}
    for node in _parse(path).body if path.is_file() else []:
        value = getattr(node, "value", None)
        if _target(node) == name and isinstance(value, ast.Call) and value.args:
            found |= dict(_evaluate(value.args[0]) or [])
        elif isinstance(value, ast.Call) and ast.unparse(value.func) == f"{name}.update" and value.args:
            found |= dict(_evaluate(value.args[0]) or {})
    return found


def _evaluate(node: ast.expr) -> Any | None:
    """A literal, or a product or power of two such as `4096 * 32`; None for anything that needs execution."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Pow):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(left, int | float) and isinstance(right, int | float) and abs(right) < 10**6:
            return left * right if isinstance(node.op, ast.Mult) else left ** min(right, 64)
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _config_classes() -> dict[str, str]:
    auto = _models() / "auto"
    known = _literal(auto / "auto_mappings.py", "CONFIG_MAPPING_NAMES")
    return {"gpt-sw3": "GPT2Config"} | known | _literal(auto / "configuration_auto.py", "CONFIG_MAPPING_NAMES")


def _config_file(family: str) -> Path | None:
    auto, name = _models() / "auto", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"
    special = _literal(auto / "auto_mappings.py", name) | _literal(auto / "configuration_auto.py", name)
    module = "gpt2" if family == "gpt-sw3" else special.get(family, family).replace("-", "_")
    path = _models() / module / f"configuration_{module}.py"
    return path if path.is_file() else next(_models().glob(f"*/configuration_{module}.py"), None)


@cache
def _class_nodes(path: Path) -> Mapping[str, ast.ClassDef]:
    return {node.name: node for node in _parse(path).body if isinstance(node, ast.ClassDef)}


def _collect(path: Path, class_name: str, seen: frozenset[str]) -> _Class | None:
    """The fields of a class and of its bases within transformers; the nearest definition wins."""
    node = _class_nodes(path).get(class_name)
    if node is None or class_name in seen:
        return None
    found = _Class()
    for base in reversed(node.bases):
        name = ast.unparse(base)
        below = _collect(_file_of(path, name), name, seen | {class_name})
        if below is not None:
            found.defaults |= below.defaults
            found.kinds |= below.kinds
            found.names |= below.names
            found.attribute_map = below.attribute_map or found.attribute_map
    for statement in node.body:
        _read_statement(statement, found)
    return found


def _file_of(path: Path, class_name: str) -> Path:
    """The file that defines a class: the source of a relative import, else this file."""
    for node in _parse(path).body:
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.level and any(alias.name == class_name for alias in node.names):
            imported = path.parents[node.level - 1] / f"{node.module.replace('.', '/')}.py"
            return imported if imported.is_file() else path
    return path


def _read_statement(node: ast.stmt, found: _Class) -> None:
    name = _target(node)
    if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__post_init__"):
        found.names.update(_popped(node))
        if node.name == "__init__":
            found.names.update(arg.arg for arg in [*node.args.args[1:], *node.args.kwonlyargs])
    elif name == "attribute_map" and isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        found.attribute_map = _evaluate(node.value) or {}
    elif isinstance(node, ast.AnnAssign) and name is not None and "ClassVar" not in ast.unparse(node.annotation):
        _read_field(name, node, found)


def _read_field(name: str, node: ast.AnnAssign, found: _Class) -> None:
    found.names.add(name)
    found.defaults.pop(name, None)
    default = _default(node.value)
    if default is not None:
        found.defaults[name] = default
    kinds = frozenset(_kinds(node.annotation))
    found.kinds[name] = kinds if kinds <= _KINDS else frozenset()


def _default(node: ast.expr | None) -> Any | None:
    """A literal, or the `default=` of a field function such as `interval(min=0)(default=0.02)`."""
    if isinstance(node, ast.Call):
        node = next((keyword.value for keyword in node.keywords if keyword.arg == "default"), None)
    return _evaluate(node) if node is not None else None


def _kinds(annotation: ast.expr) -> Iterator[str]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _kinds(annotation.left)
        yield from _kinds(annotation.right)
    elif isinstance(annotation, ast.Subscript):
        yield ast.unparse(annotation.value)
    else:
        yield ast.unparse(annotation)


def _popped(function: ast.FunctionDef) -> Iterator[str]:
    """Keys that a constructor pops from its keyword arguments: older names that are still accepted."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("kwargs.pop", "kwargs.get") and node.args:
            key = _evaluate(node.args[0])
            if isinstance(key, str):
                yield key
