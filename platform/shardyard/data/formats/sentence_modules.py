"""The files with which sentence-transformers loads an exported model of embeddings as it was trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from shardyard.data.formats.inputs import FormatInputs

_MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
_MODES = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}


@dataclass(frozen=True)
class SentenceModules:
    """The layout of `SentenceTransformer.save`: model, pooling, and scaling to length 1."""

    width: int
    sequence_length: int
    pooling: str
    query_prompt: str
    document_prompt: str

    @classmethod
    def for_model(cls, inputs: FormatInputs) -> SentenceModules:
        """The modules of a recipe's model."""
        settings, width = inputs.embedding, inputs.model.get_text_config().hidden_size
        return cls(
            width, inputs.sequence_length, settings.pooling, settings.query_prompt, settings.document_prompt
        )  # fmt: skip

    def save_pretrained(self, folder: Path) -> None:
        """Write the files beside the model's own."""
        modules = [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
            for at, (path, name) in enumerate(_MODULES)
        ]
        pooling = {"word_embedding_dimension": self.width, "include_prompt": True}
        pooling |= {f"pooling_mode_{mode}": mode == _MODES[self.pooling] for mode in _MODES.values()}
        prompts = {"query": self.query_prompt, "document": self.document_prompt}
        for path, content in (
            ("modules.json", modules),
            ("sentence_bert_config.json", {"max_seq_length": self.sequence_length, "do_lower_case": False}),
            ("config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"}),
            ("1_Pooling/config.json", pooling),
        ):
            file = folder / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (folder / "2_Normalize").mkdir(exist_ok=True)
