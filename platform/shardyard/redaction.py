"""Finding and removing secrets in text. Imports no other module of Shardyard.

Everything that is written or shown passes through here: errors as they are made, run.json, events, logs, model cards,
what W&B receives, and the package of a job. A recipe is not redacted but refused (`recipe/rules/secrets.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

HIDDEN = "[hidden]"
# Shorter values are words that occur anywhere.
SHORTEST_SECRET = 8
# `${DATA_LOGIN}` in a URL of a recipe: only such names, so that a recipe from elsewhere cannot send others away.
VARIABLE_PREFIX = "DATA_"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

# `monkey` and `max_tokens` are no secrets: the word must stand alone, in the singular.
_SECRET_NAME = re.compile(
    r"(^|[^a-z])(api[-_.]?key|key|token|secret|password|passwd|credentials?|auth|bearer)($|[^a-z])", re.IGNORECASE
)
_NOT_SECRET = re.compile(r"(eos|bos|pad|unk|mask|cls|sep)_token", re.IGNORECASE)

_NAMED = (
    r"(?:api[-_. ]?key|access[-_.]?key|secret[-_.]?key|account[-_.]?key|(?:access|auth|refresh|id|session|bearer)[-_.]?"
    r"token|client[-_.]?secret|aws[-_]secret[-_]access[-_]key|\w*_token|token|secret|passw(?:or)?d|passphrase|credentials?)"
)
# Parameters of a URL that sign it or name who asks.
_PARAMETER = (
    r"(?:[\w.-]*(?:token|signature|credential|secret|passw(?:or)?d|api[-_]?key|access[-_]?key(?:id)?|security)[\w.-]*"
    r"|sig|se?ckey|auth|authorization|key|pwd|hmac|code)"
)
# A value that begins like this is a variable, a placeholder, or hidden already.
_GIVEN = r"(?!\$\{|\[hidden\]|<)"
# Longer than a word, or of letters and digits.
_VALUE = r"(?=\S{20}|[^\s\"',;&]*[a-z][^\s\"',;&]*\d|[^\s\"',;&]*\d[^\s\"',;&]*[a-z])[^\s\"',;&()\[\]{}]{8,}"
# Whole values that are recognised by their form.
_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|wandb_v\d_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|sk-[\w-]{16,}|xox[a-z]-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|npm_\w{30,}"
    r"|pypi-[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)(?![\w])"
    r"|(?<=hooks\.slack\.com/services/)[\w/]+",
    re.DOTALL,
)
# The first group stays, the rest goes.
_AFTER = (
    re.compile(r"(\b[a-z][\w+.-]*://)(?!\[hidden\]|[^/?#\s@'\"]*\$\{)[^/?#\s@'\"]+(?=@)", re.IGNORECASE),
    re.compile(rf"([?&;]{_PARAMETER}=){_GIVEN}[^&;\s'\"#]+", re.IGNORECASE),
    re.compile(rf"(\b(?:Bearer|Basic)\s+){_GIVEN}(?=[\w.~+/-]*[\d=])[\w.~+/-]{{12,}}=*", re.IGNORECASE),
    re.compile(rf"(\b{_NAMED}[\"']?\s*[=:]\s*[\"']?){_GIVEN}{_VALUE}", re.IGNORECASE),
)
# Most text holds none of these, which is quick to check.
_HINT = re.compile(
    r"://|-----BEGIN|hf_|api_org_|wandb_v|gh[pousr]_|github_pat|glpat-|sk-|xox|A[KS]IA|AIza|npm_|pypi-|eyJ"
    r"|bearer|basic|key|token|secret|passw|passphrase|credential|[?&;]",
    re.IGNORECASE,
)

# Values that this process has put into URLs.
_remembered: set[str] = set()


def scrub(text: str, secrets: Sequence[str] = ()) -> str:
    """The text without strings that have the shape of a secret, logins and signatures in URLs, values of the
    environment's secret variables, and the given ones."""
    return _without(text, _known(secrets))


def without_forms(text: str) -> str:
    """The text without what looks like a secret by its form alone, whatever the environment holds."""
    if not _HINT.search(text):
        return text
    text = _FORMS.sub(HIDDEN, text)
    for pattern in _AFTER:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def holds_secret(text: str) -> bool:
    """Whether the text holds what looks like a secret, or the value of a secret variable of the environment."""
    return secret_finder()(text)


def secret_finder() -> Callable[[str], bool]:
    """`holds_secret` for many texts: the environment is read once."""
    known = _known()
    return lambda text: _without(text, known) != text


def scrub_all(value: Any) -> Any:
    """Plain data with every text in it scrubbed; what needs no change is returned as it is."""
    return _all_without(value, _known())


def _all_without(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return _without(value, secrets)
    if isinstance(value, Mapping):
        changed = {key: _all_without(item, secrets) for key, item in value.items()}
        return changed if any(changed[key] is not item for key, item in value.items()) else value
    if isinstance(value, list | tuple):
        items = [_all_without(item, secrets) for item in value]
        return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


def _without(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return without_forms(text)


def is_secret_name(name: str) -> bool:
    """`WANDB_API_KEY`, `HF_TOKEN`, `--password` → True; `--max-tokens`, `model.config.eos_token_id` → False."""
    words = name.replace("_", "-")
    return bool(_SECRET_NAME.search(words)) and not _NOT_SECRET.search(name)


def hide_secrets(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments, with values of key-like options, of secret variables and of known token shapes replaced."""
    values = list(_secret_values(environment.items()))
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next:
            shown.append(HIDDEN)
        elif equals and is_secret_name(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(scrub(argument, values))
        hide_next = argument.startswith("-") and not equals and is_secret_name(argument)
    return shown


def variables_in(text: str) -> list[str]:
    """Names of the variables that a text refers to, as `${NAME}`."""
    return _VARIABLE.findall(text)


def filled(text: str, value_of: Callable[[str], str]) -> str:
    """The text with `${NAME}` replaced by `value_of(NAME)`; these values are scrubbed from now on."""

    def fill(match: re.Match[str]) -> str:
        value = value_of(match[1])
        if len(value) >= SHORTEST_SECRET:
            _remembered.add(value)
        return value

    return _VARIABLE.sub(fill, text)


def _known(given: Sequence[str] = ()) -> list[str]:
    """Values that are secrets whatever their form, the longest first."""
    environment = _secret_values_of(tuple(sorted(os.environ.items())))
    return sorted({*given, *environment, *_remembered}, key=len, reverse=True)


@lru_cache(maxsize=4)
def _secret_values_of(items: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(_secret_values(items))


def _secret_values(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, value in items:
        if is_secret_name(name) and len(value) >= SHORTEST_SECRET and not _is_plain(value):
            yield value


def _is_plain(value: str) -> bool:
    """Whether a value is a path, or a short number or word such as `disabled` in RAY_AUTH_MODE."""
    return value.startswith(("/", "~", "./")) or ((value.isdecimal() or value.isalpha()) and len(value) < 16)
