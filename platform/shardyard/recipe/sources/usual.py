"""Usual names of columns of pictures and recordings, where columns do not have the objective's names. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shardyard.objectives.spec import Kind

_MEDIA: Mapping[Kind, tuple[str, ...]] = {
    "image": ("image", "jpg", "jpeg", "png", "webp", "img", "image_path", "file_name", "image_name"),
    "audio": ("audio", "wav", "flac", "mp3", "ogg", "opus", "audio_filepath", "audio_path", "file_name", "path"),
}
# Of what is said of a picture or in a recording.
_BESIDE: Mapping[Kind, tuple[str, ...]] = {
    "text": ("text", "txt", "caption", "sentence", "transcription", "transcript", "normalized_text", "comment"),
    "label": ("label", "cls", "class"),
    "segments": ("segments", "chunks", "words"),
}


def usual_column(role: str, roles: Mapping[str, Kind], has: Callable[[str], bool]) -> str:
    """The column of a role that no mapping names: the one of its name, or the first with a usual one; else the role."""
    kind = roles[role]
    names = _MEDIA.get(kind, ())
    if not names and any(other in _MEDIA for other in roles.values()):
        names = _BESIDE.get(kind, ())
    return next((name for name in (role, *names) if has(name)), role)


def columns_of(
    roles: Mapping[str, Kind], mapping: Mapping[str, str], text_column: str, has: Callable[[str], bool]
) -> dict[str, str]:
    """Role → column: as the recipe maps it, or by its usual names.

    Args:
        mapping: `columns` of the recipe. text_column: the recipe's; `text` stands for the usual names.
        has: whether a column exists.
    """
    named = dict(mapping) if text_column == "text" else {"text": text_column, **mapping}
    return {role: named[role] if role in named else usual_column(role, roles, has) for role in roles}
