"""Maps, which change a document's text: characters, spaces, case, and mail and IP addresses."""

from __future__ import annotations

import ipaddress
import re
import unicodedata

from shardyard.data.filters.outcome import Clean
from shardyard.recipe.sections.filters import Lowercase, Mask, Unicode, Whitespace

# Category Cc but tabs and line ends; the byte order mark and spaces without width.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\u200b\u2060]")
_LINE_END = re.compile(r"\r\n?|[\x85\u2028\u2029]")
_AT_END = re.compile(r"[^\S\n]+(?=\n|\Z)")
_SPACES = re.compile(r"[^\S\n]+")
# An address as people write it: a dot-atom of RFC 5322, section 3.2.3, that begins with a letter or digit, at a domain
# with a dot.
_MAIL = re.compile(
    r"(?<![\w.])\w[\w!#$%&'*+/=?^`{|}~-]*(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*"
    r"@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_](?:[\w-]*[^\W_])"
)
_IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
# Public addresses are in 2000::/3; others look like names of code: a::b.
_IP6 = re.compile(r"(?<![\w:])(?:[23][0-9A-Fa-f]{3}(?::{1,2}[0-9A-Fa-f]{1,4}){1,7}(?:::)?|::1)(?![\w:])")


def unicode(step: Unicode) -> Clean:
    """One form of each character, without invisible ones."""

    def clean(text: str) -> str:
        if step.form is not None and not unicodedata.is_normalized(step.form, text):
            text = unicodedata.normalize(step.form, text)
        return _INVISIBLE.sub("", text) if step.control_characters else text

    return clean


def whitespace(step: Whitespace) -> Clean:
    """Line ends of one kind, no spaces at the ends of lines, few blank lines, none around the document."""
    most = None if step.blank_lines is None else step.blank_lines + 1
    blank = None if most is None else re.compile(rf"\n{{{most + 1},}}")

    def clean(text: str) -> str:
        text = _AT_END.sub("", _LINE_END.sub("\n", text))
        if step.spaces:
            text = re.sub(r"(?m)^ ", "", _SPACES.sub(" ", text))
        if blank is not None and most is not None:
            text = blank.sub("\n" * most, text)
        return text.strip("\n")

    return clean


def lowercase(step: Lowercase) -> Clean:
    """Letters in lower case."""
    return str.lower


def mask(step: Mask) -> Clean:
    """Mail and IP addresses replaced by one that belongs to nobody (RFC 2606, RFC 5737)."""

    def address(match: re.Match[str]) -> str:
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            return match[0]
        return step.ip if step.ip is not None and (public or step.private_addresses) else match[0]

    def clean(text: str) -> str:
        if step.mail is not None and "@" in text:
            mail = step.mail
            text = _MAIL.sub(lambda _: mail, text)
        if step.ip is not None:
            text = _IP6.sub(address, _IP4.sub(address, text))
        return text

    return clean
