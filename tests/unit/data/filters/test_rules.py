"""The rules that remove documents, on both sides of each threshold; shares are computed by hand in the comments."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.data.filters.outcome import Removed
from shardyard.data.filters.steps import make_step
from shardyard.recipe.sections.filters import Step


def outcome(step: dict[str, Any], text: str) -> str:
    """The reason of a removal, or `kept`."""
    found = make_step(Step.model_validate(step), lambda _: ())(text)
    return found.reason if isinstance(found, Removed) else "kept"


def words(number: int) -> str:
    """Different words of five letters, of which no two neighbours repeat."""
    return " ".join(f"{chr(97 + n // 676)}{chr(97 + n // 26 % 26)}{chr(97 + n % 26)}xy" for n in range(number))


REPETITION = ["line", "paragraph"]


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        ({"unit": "characters", "min": 3}, "äöü", "kept"),
        ({"unit": "characters", "min": 3}, "äö", "fewer than 3 characters"),
        ({"unit": "characters", "max": 3}, "abcd", "more than 3 characters"),
        ({"unit": "bytes", "max": 3}, "äö", "more than 3 bytes"),
        ({"unit": "bytes", "max": 4}, "äö", "kept"),
        ({"unit": "words", "min": 2, "max": 2}, "one  two", "kept"),
        ({"unit": "words", "min": 2, "max": 2}, "one two three", "more than 2 words"),
        ({"unit": "tokens", "max": 4, "tokenizer": "bytes"}, "äö", "kept"),
        ({"unit": "tokens", "max": 3, "tokenizer": "bytes"}, "äö", "more than 3 tokens"),
    ],
)
def test_length(step: dict[str, Any], text: str, reason: str) -> None:
    assert outcome({"length": step}, text) == reason


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        ({"pattern": r"\bspam\b"}, "this is spam", r"matches \bspam\b"),
        ({"pattern": r"\bspam\b"}, "spammer", "kept"),
        ({"pattern": "(?i)HAM", "action": "keep"}, "ham", "kept"),
        ({"pattern": "ham", "action": "keep"}, "beef", "does not match ham"),
    ],
)
def test_regex(step: dict[str, Any], text: str, reason: str) -> None:
    assert outcome({"regex": step}, text) == reason


def test_a_regex_replaces() -> None:
    step = Step.model_validate({"regex": {"pattern": r"(\d+) €", "action": "replace", "replacement": r"EUR \1"}})
    assert make_step(step, lambda _: ())("5 € and 7 €") == "EUR 5 and EUR 7"


def alone(name: str, **limits: float) -> dict[str, Any]:
    """One rule of Gopher's repetition rules, with the others off."""
    every = {
        **{f"max_duplicate_{part}{what}": None for part in REPETITION for what in ("s", "_characters")},
        **{f"max_top_{size}gram": None for size in (2, 3, 4)},
        **{f"max_duplicate_{size}grams": None for size in range(5, 11)},
    }
    every.pop(name)
    return {"gopher_repetition": {**every, **limits}}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        # 3 of 10 lines repeat an earlier one, then 4 of 11.
        ("max_duplicate_lines", "\n".join("abcdefg") + "\na\na\nb", "kept"),
        ("max_duplicate_lines", "\n".join("abcdefg") + "\na\na\nb\nb", "duplicate lines above 0.3"),
        ("max_duplicate_paragraphs", "\n\n".join("abcdefg") + "\n\na\n \na\n\n\nb", "kept"),
        ("max_duplicate_paragraphs", "\n\n".join("abcdef") + "\n\na\n\na\n\nb", "duplicate paragraphs above 0.3"),
        # 2 of 10 characters in repeated lines, then 3 of 11.
        ("max_duplicate_line_characters", "abc\nde\nfgh\nde", "kept"),
        ("max_duplicate_line_characters", "abc\nde\nfgh\nabc", "duplicate line characters above 0.2"),
        ("max_duplicate_paragraph_characters", "abc\n\nde\n\nfgh\n\nde", "kept"),
        ("max_duplicate_paragraph_characters", "abc\n\nde\n\nfgh\n\nabc", "duplicate paragraph characters above 0.2"),
        # `a b` twice is 6 of 30 characters with the spaces between words, then of 29.
        ("max_top_2gram", "a b cdefgh a b ijklmnopqrstuvw", "kept"),
        ("max_top_2gram", "a b cdefgh a b ijklmnopqrstuv", "top 2gram above 0.2"),
        # It occurs once, and so repeats nothing.
        ("max_top_2gram", "a b c", "kept"),
        # Where they overlap, characters count once: `a a` covers 5 of 25, not 6.
        ("max_top_2gram", "a a a cdefghijklmnopqrstu", "kept"),
        # `a b c` twice is 10 of 56 characters (0.179), then of 55 (0.182).
        ("max_top_3gram", f"a b c {'d' * 17} a b c {'e' * 26}", "kept"),
        ("max_top_3gram", f"a b c {'d' * 17} a b c {'e' * 25}", "top 3gram above 0.18"),
        # `a b c d` twice is 14 of 88 (0.159), then of 87 (0.161).
        ("max_top_4gram", f"a b c d {'e' * 35} a b c d {'f' * 36}", "kept"),
        ("max_top_4gram", f"a b c d {'e' * 35} a b c d {'f' * 35}", "top 4gram above 0.16"),
    ],
)
def test_gopher_repetition(name: str, text: str, reason: str) -> None:
    defaults = Step.model_validate({"gopher_repetition": None}).gopher_repetition
    assert outcome(alone(name, **{name: getattr(defaults, name)}), text) == reason


@pytest.mark.parametrize(
    ("size", "share"), [(5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)], ids=lambda value: str(value)
)
def test_duplicated_ngrams(size: int, share: float) -> None:
    # The second occurrence of `size` words of five letters covers 6·size − 1 characters.
    name, block = f"max_duplicate_{size}grams", words(size)
    for characters, reason in ((0, "kept"), (-1, f"duplicate {size}grams above {share:g}")):
        whole = -int(-(6 * size - 1) // share) + characters  # the shortest text whose share is not above
        filler = "Z" * (whole - 2 * (6 * size - 1) - 2)
        text = f"{block} {filler} {block}"
        assert len(text) == whole
        assert outcome(alone(name, **{name: share}), text) == reason


def test_overlapping_ngrams_count_each_character_once() -> None:
    # Seven words again: three 5-grams repeat, which cover the 41 characters of the seven words, of 94.
    block = words(7)
    text = f"{block} {'Z' * 10} {block}"
    assert len(text) == 94
    limits = {"max_duplicate_5grams": 41 / 94}
    assert outcome(alone("max_duplicate_5grams", **limits), text) == "kept"
    assert outcome(alone("max_duplicate_5grams", max_duplicate_5grams=0.43), text) == "duplicate 5grams above 0.43"


STOP = "the of"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{STOP} {words(48)}", "kept"),
        (f"{STOP} {words(47)}", "fewer than 50 words"),
        # 50 words: 48 of three letters and `the of` are 149 characters, then the mean is 2.98; with one letter more 3.
        (f"{STOP} a{'abc ' * 48}", "kept"),
        (f"{STOP} {'abc ' * 48}", "words shorter than 3 characters on average"),
        # 495 letters and 5 of the stop words: 500 of 50, then 501.
        (f"{STOP} {('a' * 10 + ' ') * 33}{('b' * 11 + ' ') * 15}", "kept"),
        (f"{STOP} {('a' * 10 + ' ') * 32}{('b' * 11 + ' ') * 16}", "words longer than 10 characters on average"),
        # 5 of 50 words, then 6.
        (f"{STOP} {words(48)}".replace("xy", "x#", 5), "kept"),
        (f"{STOP} {words(48)}".replace("xy", "x#", 6), "more than 0.1 hash signs a word"),
        (f"{STOP} {words(48)}".replace("xy", "x…", 4).replace("xy", "x...", 1), "kept"),
        (f"{STOP} {words(48)}".replace("xy", "x…", 4).replace("xy", "x...", 2), "more than 0.1 ellipses a word"),
        # 9 of 10 lines, then 10 of 11.
        ("\n".join([f"{STOP} {words(40)}", *["- item here"] * 5, *["• item here"] * 4]), "kept"),
        (
            "\n".join([f"{STOP} {words(40)}", *["- item here"] * 6, *["• item here"] * 4]),
            "more than 0.9 of the lines begin with a bullet",
        ),
        # 3 of 10 lines, then 4.
        ("\n".join([f"{STOP} {words(60)}", *["some line"] * 6, *["line that ends…"] * 3]), "kept"),
        (
            "\n".join([f"{STOP} {words(60)}", *["some line"] * 5, *["line that ends..."] * 4]),
            "more than 0.3 of the lines end with an ellipsis",
        ),
        # 40 of 50 words have letters, then 39.
        (f"{STOP} {words(38)} {'12345 ' * 10}", "kept"),
        (f"{STOP} {words(37)} {'12345 ' * 11}", "less than 0.8 of the words have a letter"),
        # Case and punctuation do not matter; the same word twice is one.
        (f"The, (of) {words(48)}", "kept"),
        (f"the the {words(48)}", "fewer than 2 stop words"),
    ],
)
def test_gopher_quality(text: str, reason: str) -> None:
    assert outcome({"gopher_quality": None}, text) == reason


def test_gopher_counts_at_most_so_many_words() -> None:
    step = {"gopher_quality": {"min_words": 1, "max_words": 4, "min_mean_word_length": None}}
    assert outcome(step, "the cat of it") == "kept"
    assert outcome(step, "the cat of it sat") == "more than 4 words"


SENTENCES = ["This line has five words.", "Here is another such line!", 'Is "this" one as well?']


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (SENTENCES, SENTENCES),
        (SENTENCES[:2], "fewer than 3 sentences in the lines that are left"),
        ([*SENTENCES, "This line has no end"], SENTENCES),
        ([*SENTENCES, "This line is cut off ..."], SENTENCES),
        ([*SENTENCES, "Only four words here."], SENTENCES),
        ([*SENTENCES, "Please enable Javascript to see this."], SENTENCES),
        ([*SENTENCES, "By this you accept our Privacy Policy."], SENTENCES),
        ([*SENTENCES, f"One word is {'o' * 1000} long."], [*SENTENCES, f"One word is {'o' * 1000} long."]),
        ([*SENTENCES, f"One word is {'o' * 1001} long."], SENTENCES),
        ([*SENTENCES, "It was so in 1999.[12][edit]"], [*SENTENCES, "It was so in 1999."]),
        ([*SENTENCES, "Then lorem IPSUM follows at once."], [*SENTENCES, "Then lorem IPSUM follows at once."]),
        ([*SENTENCES, "lorem Ipsum"], "lorem ipsum"),
        ([*SENTENCES, "a {"], "a curly bracket"),
        (["nothing ends here"], "no line is left"),
    ],
)
def test_c4(lines: list[str], kept: list[str] | str) -> None:
    found = make_step(Step.model_validate({"c4": None}), lambda _: ())("\n".join(lines))
    if "lorem" in str(kept):
        kept = "lorem ipsum"
    assert (found.reason if isinstance(found, Removed) else found.split("\n")) == kept


LONG = "x" * 29


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # 12 of 100 lines end with punctuation, then 13. Each has four words.
        (
            "\n".join([f"a b {n:03} {LONG}." for n in range(12)] + [f"a b {n:03} {LONG}" for n in range(88)]),
            "at most 0.12 of the lines end with punctuation",
        ),
        ("\n".join([f"a b {n:03} {LONG}." for n in range(13)] + [f"a b {n:03} {LONG}" for n in range(87)]), "kept"),
        # One of ten lines of equal length repeats another, then one of eleven.
        (
            "\n".join([f"a b {n:03} {LONG}." for n in (*range(9), 0)]),
            "at least 0.1 of the characters in repeated lines",
        ),
        ("\n".join([f"a b {n:03} {LONG}." for n in (*range(10), 0)]), "kept"),
        # 67 of 100 lines are shorter than 30 characters, then 66.
        (
            "\n".join([f"a b {n:03} short." for n in range(67)] + [f"a b {n:03} {LONG}." for n in range(33)]),
            "at least 0.67 of the lines shorter than 30 characters",
        ),
        ("\n".join([f"a b {n:03} short." for n in range(66)] + [f"a b {n:03} {LONG}." for n in range(34)]), "kept"),
        # 3 line ends for 10 words, then 4.
        (f"a b {LONG}1.\nc d {LONG}2.\ne {LONG}3.\nf {LONG}4.", "kept"),
        (f"a b {LONG}1.\nc d {LONG}2.\ne {LONG}3.\n\nf {LONG}4.", "more than 0.3 line ends a word"),
    ],
)
def test_fineweb(text: str, reason: str) -> None:
    assert outcome({"fineweb": None}, text) == reason


def test_language() -> None:
    pytest.importorskip("lingua", reason="the extra clean")
    step = {"language": {"keep": ["en"], "among": ["de", "fr"]}}
    assert outcome(step, "This is certainly an English sentence about the weather.") == "kept"
    german = "Das ist ganz sicher ein deutscher Satz über das Wetter von morgen."
    assert outcome(step, german) == "not in en by a confidence of 0.65"
    assert outcome({"language": {"keep": ["en", "de"], "among": ["fr"]}}, german) == "kept"


def test_an_unknown_language_is_told() -> None:
    pytest.importorskip("lingua", reason="the extra clean")
    with pytest.raises(Exception, match="lingua knows no language 'english'"):
        make_step(Step.model_validate({"language": {"keep": ["english"]}}), lambda _: ())
