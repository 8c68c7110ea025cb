"""prompts-xx: recorded telephone prompts with their transcripts."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from pathlib import Path

from shardyard.data.datasets.audio import WAV_HEADER_BYTES, audio
from shardyard.data.datasets.rows import SAMPLING_RATE, Converted, MediaFile, Row, mixed
from shardyard.data.datasets.splits import is_held_out, near_duplicates, words

HELD_OUT_PERCENT = 20.0
# The maximum length of an input of speech models.
MAX_SECONDS = 30.0
# Faster than human speech: the transcript contains more than the recording.
MAX_LETTERS_PER_SECOND = 25.0
_LINE = re.compile(r"([\w./-]+):\s*(.+)")
_ELLIPSIS = re.compile(r"\.{2,}|…")
_TONES = frozenset(("beep", "beeperr", "ascending-2tone", "descending-2tone", "confbridge-join", "confbridge-leave"))
# Descriptions and remarks in brackets are not spoken; a question mark within a sentence is a lost accent.
_NOT_SPOKEN = re.compile(r"[\[\](){}<>@\ufffd]|\s\?|\?\s*[a-zà-ÿ]")


def convert(folders: Mapping[str, Path]) -> Converted:
    """Clips with a transcript."""
    sounds, recordings = sorted(folders.values(), key=lambda folder: folder.name.endswith("-wav.files"))
    (listed,) = sounds.glob("usr/share/doc/*/core-sounds-*.txt.gz")
    (voice,) = recordings.glob("usr/share/asterisk/sounds/*_*")
    transcripts = read_transcripts(gzip.decompress(listed.read_bytes()).decode("utf-8-sig", errors="replace"))
    clips = {path.relative_to(voice).with_suffix("").as_posix(): path for path in sorted(voice.rglob("*.wav"))}
    usable = {id_: text for id_, text in transcripts.items() if is_spoken(id_, text)}
    found = sorted(usable.keys() & clips.keys())
    left_out = {
        "no transcript": len(clips.keys() - transcripts.keys()),
        "no recording": len(usable.keys() - clips.keys()),
        "tones, silence, remarks in the transcript": len(transcripts) - len(usable),
    }
    heard = {id_: audio(clips[id_]) for id_ in found}
    seconds = {id_: (len(clip["bytes"]) - WAV_HEADER_BYTES) / 2 / SAMPLING_RATE for id_, clip in heard.items()}
    fitting = [id_ for id_ in found if seconds[id_] <= MAX_SECONDS]
    left_out[f"longer than {MAX_SECONDS:.0f} seconds"] = len(found) - len(fitting)
    spoken = [id_ for id_ in fitting if num_letters(usable[id_]) <= MAX_LETTERS_PER_SECOND * seconds[id_]]
    left_out["transcript longer than the recording"] = len(fitting) - len(spoken)
    return Converted(_split(spoken, usable, heard), left_out=left_out)


def _split(ids: list[str], texts: Mapping[str, str], clips: Mapping[str, MediaFile]) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for id_, key in zip(ids, near_duplicates([texts[id_] for id_ in ids]), strict=True):
        row = {"audio": clips[id_], "text": texts[id_], "id": id_}
        splits["validation" if is_held_out(key, HELD_OUT_PERCENT) else "train"].append(row)
    return {split: mixed(rows, split) for split, rows in splits.items()}


def num_letters(text: str) -> int:
    """Letters and digits of a text."""
    return sum(map(len, words(text)))


def read_transcripts(text: str) -> dict[str, str]:
    """`id: text` lines by id; lines that begin with a semicolon are comments. Ellipses are removed."""
    matches = (_LINE.fullmatch(line.strip()) for line in text.splitlines() if not line.startswith(";"))
    return {match[1]: " ".join(_ELLIPSIS.sub(" ", match[2]).split()) for match in matches if match}


def is_spoken(id_: str, text: str) -> bool:
    """Whether the transcript is spoken text, not the description of a sound."""
    return id_ not in _TONES and not id_.startswith("silence/") and not _NOT_SPOKEN.search(text)
