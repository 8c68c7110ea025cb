"""Manifests as YAML for kubectl, which reads YAML 1.1, where `on` is a boolean."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString, SingleQuotedScalarString

_BOOLEANS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false"})
# Numbers in any base, with exponents or underscores, in minutes and seconds; infinities; dates and times.
_NUMBER = re.compile(r"[-+]?(\d[-+.:_\dxoa-f]*|\.[-+_\de]+|\.inf|\.nan)(t[\d:.z+-]+)?", re.IGNORECASE | re.ASCII)


def to_yaml(manifests: Sequence[Mapping[str, object]], comments: Sequence[str]) -> str:
    """Manifests as one YAML text for `kubectl create -f`, with comments at the top."""
    writer = YAML()
    writer.width = 4096
    writer.indent(mapping=2, sequence=4, offset=2)
    writer.representer.ignore_aliases = lambda data: True
    stream = io.StringIO()
    stream.write("".join(f"# {' '.join(line.split())}\n" for line in comments))
    for manifest in manifests:
        stream.write("---\n")
        writer.dump(_readable(manifest), stream)
    return stream.getvalue()


def _readable(value: Any) -> Any:
    """Multi-line texts as literal blocks; quotes around text that YAML 1.1 would read as another type."""
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, str):
        return value
    if "\n" in value:
        return LiteralScalarString(value)
    # kubectl reads `on` and `y` as booleans, 1e3 and 0o17 as numbers, and dates.
    ambiguous = _NUMBER.fullmatch(value) or value.lower() in _BOOLEANS
    return SingleQuotedScalarString(value) if ambiguous else value
