"""From a spec and its pieces to a fast tokenizer of `transformers`: normaliser, pre-tokenizer, decoder, template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from shardyard.data.tokenizers.spec import BYTE_LEVEL, TEMPLATE_TOKENS, TokenizerSpec

CONTINUATION = "##"
# Punctuation is separated from words, so that no piece is spent on "word," in addition to "word".
_WORDS = r"▁?\w+(?:['’]\w+)*|▁?[^\w▁]+|▁"
MAX_WORD_CHARACTERS = 100  # A longer word is unknown to WordPiece.


def bytes_tokenizer(spec: TokenizerSpec) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: the id of a byte is its value, special tokens follow."""
    backend = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(byte_characters())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    _add_special_tokens(backend, spec)
    _set_template(backend, spec)
    return _wrapped(backend, spec)


def trained_tokenizer(spec: TokenizerSpec, model: Any) -> PreTrainedTokenizerFast:
    """The tokenizer around a trained model of `tokenizers`, whose vocabulary begins with the special tokens."""
    backend = pipeline(spec, model)
    _add_special_tokens(backend, spec)
    _set_template(backend, spec)
    return _wrapped(backend, spec)


def pipeline(spec: TokenizerSpec, model: Any) -> Tokenizer:
    """The model with its normaliser, pre-tokenizer and decoder, for training and for use."""
    backend = Tokenizer(model)
    normalizer = _normalizer(spec)
    if normalizer is not None:
        backend.normalizer = normalizer
    if spec.kind == "bpe":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    elif spec.kind == "wordpiece":
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix=CONTINUATION, cleanup=True)
    else:
        # A space begins a word, as in SentencePiece. Line breaks are separate, so that decoding restores them.
        lines = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
        spaces = pre_tokenizers.Metaspace(prepend_scheme="first")
        words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([lines, spaces, words])
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return backend


def special_texts(spec: TokenizerSpec) -> list[str]:
    """Special tokens in the order of their ids; two roles may share one token."""
    return list(dict.fromkeys(spec.special_tokens.values()))


def byte_characters() -> list[str]:
    """The printable characters with which the ByteLevel pre-tokenizer represents bytes, in the order of bytes.

    GPT-2's table: a printable Latin-1 byte stands for itself, the others are numbered from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _normalizer(spec: TokenizerSpec) -> Any:
    steps: list[Any] = []
    if spec.normalization != "none":
        steps.append({"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}[spec.normalization]())
    if spec.kind == "wordpiece":
        steps.append(
            normalizers.BertNormalizer(
                clean_text=True,
                handle_chinese_chars=True,
                strip_accents=spec.strip_accents,
                lowercase=spec.lowercase,
            )
        )
    else:
        if spec.strip_accents:
            steps += [normalizers.NFD(), normalizers.StripAccents()]
        if spec.lowercase:
            steps.append(normalizers.Lowercase())
    if len(steps) <= 1:
        return steps[0] if steps else None
    return normalizers.Sequence(steps)


def _add_special_tokens(backend: Tokenizer, spec: TokenizerSpec) -> None:
    for text in special_texts(spec):
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def _set_template(backend: Tokenizer, spec: TokenizerSpec) -> None:
    """Token types are 0 for the first text and what surrounds it, 1 for the second."""
    tokens = {name: spec.special_tokens[name] for name in TEMPLATE_TOKENS[spec.template]}
    if not tokens:
        return
    around: tuple[Sequence[str], Sequence[str]] = {
        "bert": ([tokens.get("cls_token", "")], [tokens.get("sep_token", "")]),
        "eos": ([], [tokens.get("eos_token", "")]),
        "bos_eos": ([tokens.get("bos_token", "")], [tokens.get("eos_token", "")]),
    }[spec.template]
    head, tail = around
    single = [*(f"{text}:0" for text in head), "$A:0", *(f"{text}:0" for text in tail)]
    # [CLS] begins a pair; other start tokens begin each text.
    second = [] if spec.template == "bert" else [f"{text}:1" for text in head]
    pair = [*single, *second, "$B:1", *(f"{text}:1" for text in tail)]
    special = [(text, backend.token_to_id(text)) for text in dict.fromkeys(tokens.values())]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _wrapped(backend: Tokenizer, spec: TokenizerSpec) -> PreTrainedTokenizerFast:
    options: dict[str, object] = {str(name): text for name, text in spec.special_tokens.items()}
    if spec.kind not in BYTE_LEVEL:
        types = ["token_type_ids"] if spec.template == "bert" else []
        options["model_input_names"] = ["input_ids", *types, "attention_mask"]
    # Only WordPiece puts spaces between pieces of punctuation, which decoding must remove.
    clean = spec.kind == "wordpiece"
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=clean, **options)
