"""Steps that clean documents, by name: rules that remove some, and maps that change their text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from shardyard.recipe.sections.base import REQUIRED, Section, described

# Share of something that a document may have at most; null turns the rule off.
Share = float | None


def _share(default: float, description: str) -> Any:
    return described(default, f"{description} null: any.", ge=0.0, le=1.0)


class Length(Section):
    """Documents of a given length."""

    unit: Literal["characters", "bytes", "words", "tokens"] = described(
        "characters", "What is counted; words are what stands between spaces, bytes those of UTF-8."
    )
    min: int | None = described(None, "Shortest document that is kept.", ge=0)
    max: int | None = described(None, "Longest document that is kept.", ge=1)
    tokenizer: str | None = described(None, "Tokenizer of `unit: tokens`: a shipped name, a folder or a hub id.")


class Language(Section):
    """Documents in given languages, as lingua recognises them (the extra `clean`)."""

    keep: list[str] = described(REQUIRED, "Languages that are kept, as ISO 639-1 codes such as en.", min_length=1)
    min_confidence: float = described(
        0.65, "Least confidence in one of these languages, as FineWeb asks of its own detector.", ge=0.0, le=1.0
    )
    among: list[str] = described(
        [], "Languages that are told apart, as codes; fewer are faster and surer. Default: all 75 that lingua knows."
    )
    characters: int = described(2000, "Beginning of the document that is looked at.", "characters", ge=20)
    accurate: bool = described(
        False, "Compare longer n-grams too: better below 120 characters, but slower and with a GB of memory."
    )


class Regex(Section):
    """Documents in which a regular expression of Python is found."""

    pattern: str = described(REQUIRED, "The regular expression; `(?i)` at its start ignores case, `(?m)` sees lines.")
    action: Literal["keep", "drop", "replace"] = described(
        "drop", "`keep` only the documents in which it is found, `drop` these, or `replace` what it matches."
    )
    replacement: str = described("", "Text for `replace`; \\1 is the first group.")


class Unicode(Section):
    """One form of each character."""

    form: Literal["NFC", "NFKC", "NFD", "NFKD"] | None = described(
        "NFC", "Normal form (Unicode Standard Annex 15); null leaves the characters as they are."
    )
    control_characters: bool = described(
        True, "Remove control characters other than tabs and line ends, byte order marks and zero-width spaces."
    )


class Whitespace(Section):
    """Line ends of one kind, no spaces at the ends of lines."""

    spaces: bool = described(False, "Also join runs of spaces and tabs within a line, and its indentation, to one.")
    blank_lines: int | None = described(1, "Most blank lines in a row; null keeps all.", "lines", ge=0)


class Lowercase(Section):
    """Letters in lower case."""


class Mask(Section):
    """Mail and IP addresses replaced, as in FineWeb (Penedo et al. 2024, section 3.7)."""

    mail: str | None = described("email@example.com", "Text in place of a mail address; null keeps them.")
    ip: str | None = described("192.0.2.1", "Text in place of an IPv4 or IPv6 address; null keeps them.")
    private_addresses: bool = described(False, "Also mask addresses that are not public, such as 127.0.0.1.")


class GopherRepetition(Section):
    """Repetition within a document (Rae et al. 2021, table A1). Shares are of the characters if not said otherwise."""

    max_duplicate_lines: Share = _share(0.30, "Share of the lines that repeat an earlier one.")
    max_duplicate_paragraphs: Share = _share(0.30, "Share of the paragraphs that repeat an earlier one.")
    max_duplicate_line_characters: Share = _share(0.20, "Share in lines that repeat an earlier one.")
    max_duplicate_paragraph_characters: Share = _share(0.20, "Share in paragraphs that repeat an earlier one.")
    max_top_2gram: Share = _share(0.20, "Share in the most frequent pair of words.")
    max_top_3gram: Share = _share(0.18, "Share in the most frequent three words in a row.")
    max_top_4gram: Share = _share(0.16, "Share in the most frequent four words in a row.")
    max_duplicate_5grams: Share = _share(0.15, "Share in five words in a row that occurred before.")
    max_duplicate_6grams: Share = _share(0.14, "Share in six words in a row that occurred before.")
    max_duplicate_7grams: Share = _share(0.13, "Share in seven words in a row that occurred before.")
    max_duplicate_8grams: Share = _share(0.12, "Share in eight words in a row that occurred before.")
    max_duplicate_9grams: Share = _share(0.11, "Share in nine words in a row that occurred before.")
    max_duplicate_10grams: Share = _share(0.10, "Share in ten words in a row that occurred before.")


class GopherQuality(Section):
    """Quality of a document (Rae et al. 2021, section A.1.1)."""

    min_words: int | None = described(50, "Fewest words; null: any.", "words", ge=1)
    max_words: int | None = described(100_000, "Most words; null: any.", "words", ge=1)
    min_mean_word_length: float | None = described(3.0, "Least mean length of the words; null: any.", "characters")
    max_mean_word_length: float | None = described(10.0, "Largest mean length of the words; null: any.", "characters")
    max_symbols_per_word: float | None = described(
        0.1, "Most hash signs for each word, and most ellipses; null: any.", ge=0.0
    )
    max_bullet_lines: Share = _share(0.9, "Share of the lines that begin with a bullet or a hyphen.")
    max_ellipsis_lines: Share = _share(0.3, "Share of the lines that end with an ellipsis.")
    min_alphabetic_words: Share = _share(0.8, "Least share of the words with a letter.")
    min_stop_words: int | None = described(2, "Fewest different words of `stop_words`; null: any.", "words", ge=1)
    stop_words: list[str] = described(
        ["the", "be", "to", "of", "and", "that", "have", "with"], "Words of which a text has some; those of English."
    )


class C4(Section):
    """Rules of C4 (Raffel et al. 2020, section 2.2): lines are removed first, then documents."""

    terminal_punctuation: bool = described(True, "Keep only lines that end with . ! ? or a closing quotation mark.")
    min_words_per_line: int | None = described(5, "Fewest words of a line; null: any.", "words", ge=1)
    max_word_length: int | None = described(
        1000, "Longest word of a line; not in the paper but in C4's code. null: any.", "characters", ge=1
    )
    javascript: bool = described(True, "Remove lines with the word Javascript.")
    policies: bool = described(True, "Remove lines about cookies, terms of use and privacy policies.")
    citations: bool = described(True, "Remove the marks of Wikipedia: [1], [edit], [citation needed].")
    min_sentences: int | None = described(
        3, "Fewest sentences of the lines that are left; null: any.", "sentences", ge=1
    )
    lorem_ipsum: bool = described(True, "Remove documents with the phrase lorem ipsum.")
    curly_brackets: bool = described(True, "Remove documents with a {, which are mostly code.")


class FineWeb(Section):
    """Rules of FineWeb beside those of Gopher and C4 (Penedo et al. 2024, section 3.6)."""

    min_punctuated_lines: Share = _share(0.12, "Share of the lines that end with punctuation; it must be larger.")
    max_duplicate_line_characters: Share = _share(0.1, "Share in lines that repeat an earlier one; must be smaller.")
    max_short_lines: Share = _share(0.67, "Share of the lines shorter than `short_line`; it must be smaller.")
    short_line: int = described(30, "Length from which on a line is not short.", "characters", ge=1)
    max_newlines_per_word: float | None = described(
        0.3, "Most line ends for each word; not in the paper but in FineWeb's code. null: any.", ge=0.0
    )


class ExactDuplicates(Section):
    """Documents with the same text as an earlier one (`shardyard data build` alone)."""

    compare: Literal["normalized", "exact"] = described(
        "normalized", "Texts in NFC and lower case with single spaces, or as they stand."
    )


class NearDuplicates(Section):
    """Documents that share most n-grams with an earlier one (MinHash, Broder 1997; `shardyard data build` alone)."""

    ngram: int = described(5, "Words in a row that are compared, as in FineWeb.", "words", ge=1)
    bands: int = described(
        14,
        "Groups of hashes. Two documents that share the fraction s of their n-grams are found with the probability "
        "1 − (1 − s^rows)^bands; it passes one half at about (1/bands)^(1/rows), 0.72 here.",
        ge=1,
        le=256,
    )
    rows: int = described(8, "Hashes of a band; all of a band must be equal.", ge=1, le=64)
    seed: int = described(1, "Seed of the hash functions.", ge=0, le=2**31 - 1)


class EvaluationSet(Section):
    """Texts that must not be trained on."""

    source: str | None = described(None, "Embedded corpus or dataset, as in a recipe.")
    path: str | None = described(None, "Files, a folder or a hub id, as in a recipe.")
    config: str | None = described(None, "Configuration (subset) of a hub dataset.")
    revision: str | None = described(None, "Git revision of a hub dataset.")
    split: str | None = described(
        None, "Split to read; by default `validation` of what `source` names, and `train` of files and hub datasets."
    )
    text_columns: list[str] = described(
        ["text"], "Columns to look for: each is a text of its own, such as question and answer.", min_length=1
    )


class Decontaminate(Section):
    """Documents that share n-grams with evaluation sets (Brown et al. 2020, appendix C)."""

    against: list[EvaluationSet] = described(REQUIRED, "The evaluation sets.", min_length=1)
    ngram: int = described(
        13, "Words in a row that are compared, in lower case without punctuation; GPT-3's number.", "words", ge=1
    )
    min_ngram: int = described(
        8, "Evaluation texts shorter than `ngram` are compared as a whole if they have so many words.", "words", ge=1
    )
    max_overlap: float = described(
        0.0, "Largest share of a document's n-grams that may occur in an evaluation set; 0: none.", ge=0.0, lt=1.0
    )


class Step(Section):
    """One step: exactly one of these, with its parameters. `gopher_quality:` alone takes the paper's."""

    length: Length | None = described(None, "Keep documents of a given length.")
    language: Language | None = described(None, "Keep documents in given languages.")
    regex: Regex | None = described(None, "Keep, drop or change documents by a regular expression.")
    gopher_repetition: GopherRepetition | None = described(None, "Remove documents that repeat themselves.")
    gopher_quality: GopherQuality | None = described(None, "Remove documents by Gopher's rules of quality.")
    c4: C4 | None = described(None, "Remove lines and documents by C4's rules.")
    fineweb: FineWeb | None = described(None, "Remove documents by FineWeb's own rules.")
    decontaminate: Decontaminate | None = described(None, "Remove documents that evaluation sets contain.")
    exact_duplicates: ExactDuplicates | None = described(None, "Remove documents that repeat an earlier one.")
    near_duplicates: NearDuplicates | None = described(None, "Remove documents that are much like an earlier one.")
    unicode: Unicode | None = described(None, "Normalise the characters.")
    whitespace: Whitespace | None = described(None, "Normalise spaces and line ends.")
    lowercase: Lowercase | None = described(None, "Make letters lower case.")
    mask: Mask | None = described(None, "Replace mail and IP addresses.")

    @model_validator(mode="before")
    @classmethod
    def _without_parameters(cls, data: Any) -> Any:
        """`- gopher_quality:` has every default."""
        if isinstance(data, dict):
            return {name: {} if value is None and name in cls.model_fields else value for name, value in data.items()}
        return data

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Only the step that it is."""
        return {name: value for name, value in handler(self).items() if getattr(self, name) is not None}

    @property
    def names(self) -> list[str]:
        """The steps that are given; a valid one has exactly one."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def name(self) -> str:
        """The name of the step."""
        (name,) = self.names
        return name

    @property
    def compares(self) -> bool:
        """Whether documents are compared with each other, so that all must be there."""
        return self.exact_duplicates is not None or self.near_duplicates is not None

    @property
    def changes_text(self) -> bool:
        """Whether documents are changed."""
        maps = (self.unicode, self.whitespace, self.lowercase, self.mask, self.c4)
        return any(map_ is not None for map_ in maps) or (self.regex is not None and self.regex.action == "replace")
