"""The data of a recipe: sources, and how documents become rows."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from shardyard.recipe.sections.base import REQUIRED, Section, described
from shardyard.recipe.sections.filters import Step
from shardyard.recipe.sections.mixture import Stage

OnError = Literal["skip", "repair", "stop"]
Order = Literal[1, 2]
Packing = Literal["concat", "best_fit"]
Tokenized = Literal["auto", "never", "always"]
TokenType = Literal["uint8", "uint16", "uint32", "uint64", "int32", "int64"]


class Source(Section):
    """One source of documents: an embedded corpus (`source`) or anything that `load_dataset` streams (`path`)."""

    source: str | None = described(
        None,
        "Embedded corpus that needs no download (python-docs, python-docstrings, python-code), or a set that "
        "`shardyard data prepare` has made ready (`shardyard data list`).",
    )
    path: str | None = described(
        None,
        "Hub id, folder, file or URL, with * allowed: .parquet, .jsonl, .json, .csv, .tsv, .txt (these five also .gz, "
        ".zst, .bz2 or .xz), .arrow, .tar (WebDataset), or folders of pictures, of recordings, of save_to_disk, Common "
        "Voice or LibriSpeech. Pictures and recordings named in a column lie relative to the file with the name. A URL "
        "takes logins and signatures from variables, ${DATA_…}.",
    )
    config: str | None = described(None, "Configuration (subset) of a hub dataset.")
    revision: str | None = described(None, "Git revision of a hub dataset: pin it to repeat a run exactly.")
    split: str | None = described(
        None, "Split to read; by default `train` under data.train and `validation` under data.validation."
    )
    text_column: str = described("text", "Column that holds the text of a document.")
    columns: dict[str, str] = described(
        {},
        "Names of columns that differ from those the objective expects, such as {image: photo, text: caption}. For "
        "conversations and preference pairs, they also choose the layout: {prompt: question, completion: answer}.",
    )
    documents: Literal["file", "lines", "paragraphs"] | int | str | None = described(
        None,
        "How text files become documents: `file`, one per file; `lines`; `paragraphs`, at blank lines; a number, "
        "pieces of about so many characters that end with a paragraph, line, sentence or word; or a regular expression "
        "between slashes that matches where a document begins, such as `/^# /`. Default: file; for a single file, "
        "pieces of a 256th of it, but of 200 to 2000 characters.",
    )
    weight: float = described(
        1.0,
        "Weight of this source in the training mixture, relative to the others: its share of the rows. 0 leaves it to "
        "a stage that gives it a weight.",
        ge=0.0,
    )
    size: float | None = described(
        None,
        "Size of the source for data.temperature, in a unit that is the same for all sources, such as tokens. Default: "
        "its documents, counted when the run is planned, for files of this machine.",
        gt=0.0,
    )
    epochs: int | None = described(
        None,
        "Most passes over the source: no document is trained on more often. Its share then goes to the others; once "
        "all sources are exhausted, the run ends.",
        "passes",
        ge=1,
    )
    tokens: int | None = described(
        None,
        "Most tokens from the source, in whole rows, padding included. Its share then goes to the others.",
        "tokens",
        ge=1,
    )
    token_type: TokenType | None = described(
        None,
        "Type of the ids in files of token ids (.npy of OLMo-core, .bin of nanoGPT) that do not tell. Default: the "
        "smallest that holds the tokenizer's vocabulary; for .bin at least 16 bits.",
    )
    holdout: float = described(
        0.0,
        "Fraction of the documents, chosen by the hash of their text, that is kept for validation: a source under "
        "data.train leaves them out, the same source under data.validation reads only them.",
        ge=0.0,
        le=0.5,
    )
    filters: list[Step] | None = described(
        None, "Steps for the documents of this source, in order, in place of data.filters; [] has none."
    )

    exclude: str | None = described(
        None, "List of documents of this source that are kept out, in place of data.exclude."
    )

    def with_defaults(self, filters: list[Step], exclude: str | None) -> Self:
        """The same with these steps and this list of excluded documents, if it has none of its own."""
        defaults: dict[str, object] = {} if self.filters is not None or not filters else {"filters": filters}
        defaults |= {} if self.exclude is not None or exclude is None else {"exclude": exclude}
        return self.model_copy(update=defaults) if defaults else self

    unpack: bool = described(
        True,
        "Compressed local files of rows or texts, if there are no more of them than streams, are unpacked once into "
        "the cache folder while training begins; later starts read their rows there by number, from where they "
        "continue. The order of the data is the same.",
    )


class Data(Section):
    sequence_length: int | None = described(
        None,
        "Length of a row. Longer examples are truncated and counted. Required by every objective with text.",
        "tokens",
        ge=2,
    )
    source_length: int | None = described(
        None, "Maximum length of the source text (seq2seq). Default: sequence_length.", "tokens", ge=2
    )
    drop_inputs: bool = described(
        False,
        "Blank the source text, recording or image in training and evaluation. This gives the baseline that a model "
        "must beat to show that it uses its inputs (seq2seq, speech_to_text, speech_ctc, vision_language).",
    )
    filters: list[Step] = described(
        [],
        "Steps that remove or change documents while they are read, in order, for every source without steps of its "
        "own: as in `shardyard data build`, but for those that compare documents with each other. What they remove is "
        "counted by reason.",
    )
    train: list[Source] = described(REQUIRED, "Sources of training documents, mixed by weight.", min_length=1)
    temperature: float | None = described(
        None,
        "Mix the sources by their sizes: weights are multiplied by size^(1/temperature). 1 is in proportion to the "
        "sizes; larger values bring small sources forward, up to equal shares (Raffel et al. 2020, section 3.5.2; "
        "XLM-R and mT5 give the exponent, 0.3 for a temperature of 3.3).",
        gt=0.0,
    )
    stages: list[Stage] = described(
        [],
        "Later parts of training with other weights, sequence length or batch size, such as annealing on better data "
        "or a longer context.",
    )
    validation: list[Source] = described(
        [], "Sources of validation documents. Default: what the training sources hold out."
    )
    isolate_documents: bool = described(
        True, "Documents packed into one row do not attend to each other, and each starts at position 0."
    )
    special_tokens: Literal["tokenizer", "end"] = described(
        "tokenizer",
        "Special tokens around captions, translations and transcripts: `tokenizer`, those that the tokenizer itself "
        "adds (start, language, task, end), or the end token if it adds none; `end`, the end token alone, as runs that "
        "began before this field existed.",
    )
    source_language: str | None = described(
        None, "Language token of the source text, for a tokenizer of several languages: en_XX, eng_Latn (seq2seq)."
    )
    target_language: str | None = described(
        None,
        "Language token of the target text (seq2seq), or language of the transcripts of a Whisper tokenizer, such as "
        "en (speech_to_text). Default: that of the tokenizer.",
    )
    task: Literal["transcribe", "translate"] | None = described(
        None, "Task token of a Whisper tokenizer (speech_to_text). Default: that of the tokenizer."
    )
    exclude: str | None = described(
        None,
        "File with the SHA-256 of documents that are neither trained nor evaluated on, one a line, as `shardyard data "
        "forget` writes it for removal requests. They are counted as removed by filters, as `exclude: listed`, and "
        "order and windows are as if they were empty.",
    )
    packing: Packing | bool | None = described(
        None,
        "How documents and conversations share rows. `best_fit` packs the longest first, each into the fullest row "
        "with room for it, and cuts none that fits into a row (Ding et al. 2024); a longer document fills rows, and "
        "what remains of it is packed. Those of one shuffle window are packed together, so a larger window fills rows "
        "better. `concat` joins documents and cuts them where a row is full (causal_lm, distillation). Default, and "
        "false: concat; conversations have rows of their own (instruction). true is best_fit for conversations.",
    )
    group_by_length: bool = described(
        False,
        "Put rows of like length into the same global batch, so that it has little padding: where rows hold one text "
        "or recording each. Lengths are characters, or bytes of recordings, and are compared within a shuffle window, "
        "so larger windows save more. The sequence of batches differs.",
    )
    on_error: OnError = described(
        "skip",
        "What happens to a row that nothing can be learned from, such as a conversation that the chat template "
        "refuses or one with an empty turn. `skip` leaves it out; `repair` joins consecutive turns of one role, "
        "removes empty ones and answers before the first question, and moves a system message into the first question "
        "if the template has none, then skips what is still unusable; `stop` ends the run and names file and row. "
        "Rows that are left out or repaired are counted, and the first ones named. A row without a target within "
        "sequence_length is always left out.",
    )
    error_limit: float = described(
        1.0,
        "Largest share of the rows of a source that may be unusable: once ten are and this share is exceeded, the run "
        "ends and names the first ones. Counted by each stream from its start or resumption on.",
        gt=0.0,
        le=1.0,
    )
    isolation: Literal["auto", "positions", "mask", "rows"] = described(
        "auto",
        "How the documents of a row are kept apart: `positions` restart and transformers derives a mask from them; "
        "`mask` is passed, for families that take one but derive none; `rows` of one document each, for state-space "
        "models and others that no mask isolates. `auto` takes the first that isolates a narrow copy of the model, and "
        "is fixed when the run is planned.",
    )
    order: Order = described(
        1,
        "How windows are formed. 1: of `shuffle_window` documents, which are read together. 2: of as many rows, each "
        "read when it is drawn, so that a run with many streams starts sooner and takes less memory; a window has "
        "fewer documents if rows are empty, held out or unusable. The sequence of batches differs.",
    )
    shuffle_window: int = described(
        256,
        "Size of the shuffle window of each stream; 1 keeps the order of the source.",
        "documents",
        ge=1,
    )
    streams: int | None = described(
        None,
        "Number of canonical streams that the data is split into. Row j of a global batch comes from stream j modulo "
        "this number, so the data-parallel size, the number of workers that read different rows, must divide it. "
        "Default: the largest divisor of the global batch up to 64 if that size divides it, else the global batch.",
        ge=1,
    )
    retry_seconds: float = described(
        300.0,
        "How long a request of a source, or a read of its storage, is tried again while it fails for reasons that may "
        "pass (a broken connection, 429, 5xx), with growing random pauses; Retry-After is kept to. Then the attempt "
        "ends, and cluster.max_failures says whether another is made.",
        "seconds",
        ge=0.0,
    )
    tokenized: Tokenized = described(
        "auto",
        "Whether documents are read as the tokens that `shardyard data tokenize RECIPE` has made of the same data with "
        "the same tokenizer and options (causal_lm, distillation, masked_lm). The batches are the same. `auto` reads "
        "them where they are in the cache folder, and the plan and the run say so; `always` ends the run where they "
        "are not; `never` reads the text.",
    )
    prefetch: int = described(
        4,
        "Global batches that are prepared ahead in the background; fewer if they take more than 512 MiB a rank.",
        "batches",
        ge=1,
        le=1024,
    )
    readers: int | None = described(
        None,
        "Readers of each rank, which decode, augment and tokenise side by side, each its own streams, so at most one a "
        "stream. 0: the loader's own thread makes the rows. The order of the data does not depend on it. Default: by "
        "the kind of data on GPUs, within the cores of a rank; 0 on CPUs. `shardyard plan RECIPE` shows it.",
        "readers",
        ge=0,
        le=256,
    )

    @model_validator(mode="after")
    def _complete_sources(self) -> Self:
        """Sources are opened one by one, so each has the steps and the list that apply to it."""
        for name in ("train", "validation"):
            sources = [source.with_defaults(self.filters, self.exclude) for source in getattr(self, name)]
            object.__setattr__(self, name, sources)
        return self


class Masking(Section):
    """Which tokens BERT predicts (Devlin et al. 2018): 80% become the mask token, 10% a random one, 10% stay."""

    probability: float = described(0.15, "Fraction of the tokens that are masked and predicted.", gt=0.0, lt=1.0)
    whole_word: bool = described(False, "Mask whole words instead of single subword tokens.")
    short_probability: float = described(
        0.1,
        "Fraction of the rows that are cut to a random length, so that the model also sees short texts.",
        ge=0.0,
        le=1.0,
    )
