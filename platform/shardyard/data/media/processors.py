"""What is saved with an exported model beside its tokenizer, so that inputs are prepared as in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.sentence_modules import SentenceModules
from shardyard.data.media.images import ImageTransform
from shardyard.data.media.listening import listener
from shardyard.data.multimodal.patches import patch_transform
from shardyard.data.multimodal.plain import plain_processor
from shardyard.objectives.registry import objective_spec


def make_processor(objective: str, inputs: FormatInputs) -> Any:
    """An object with `save_pretrained`, or None for objectives whose models need only a tokenizer."""
    if inputs.processor is not None:
        return inputs.processor
    if "embedding" in objective_spec(objective).sections:
        return SentenceModules.for_model(inputs)
    if "audio" in objective_spec(objective).sections:
        own = listener(inputs.model, inputs.audio).own
        if objective == "speech_ctc":
            return CtcProcessor(own, inputs)
        return SpeechProcessor(own, inputs.model) if "text" in objective_spec(objective).columns else own
    if "image" not in objective_spec(objective).sections:
        return None
    if (patches := patch_transform(inputs.image, inputs.model)) is not None:
        return patches.own
    found = image_processor(ImageTransform.for_model(inputs.image, inputs.model))
    if objective_spec(objective).rows == "image_answers":
        return plain_processor(inputs, found) or found
    return found


class SpeechProcessor:
    """The feature extractor, and the name of the class that joins it with the tokenizer, for `AutoProcessor`."""

    def __init__(self, own: Any, model: Any) -> None:
        self._own, self._name = own, _processor_name(model)

    def save_pretrained(self, folder: Path) -> None:
        """Save the extractor's settings with the name."""
        self._own.save_pretrained(folder)
        if self._name is not None:
            _change(Path(folder) / "preprocessor_config.json", processor_class=self._name)


def _processor_name(model: Any) -> str | None:
    """The processor of a family; composed models have that of their encoder."""
    hearing = model.encoder if model.model_type == "speech-encoder-decoder" else model
    found = _PROCESSORS.get(hearing.model_type) or PROCESSOR_MAPPING_NAMES.get(hearing.model_type)
    return found if isinstance(found, str) else None


# Those that the published models name, and the table of transformers does not.
_PROCESSORS = {"data2vec-audio": "Wav2Vec2Processor", "seamless_m4t_v2": "SeamlessM4TProcessor"}


def _change(path: Path, **fields: str | None) -> None:
    """Change fields of a JSON file."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class CtcProcessor(SpeechProcessor):
    """The same, and a tokenizer that merges what an encoder spells.

    The tokenizer of Parakeet is that of any other model, and besides merges repetitions and leaves out the padding
    token, which is the blank. It makes `pipeline("automatic-speech-recognition")` read as we do.
    """

    def __init__(self, own: Any, inputs: FormatInputs) -> None:
        super().__init__(own, inputs.model)
        self._blank = inputs.text_tokenizer.convert_ids_to_tokens(inputs.model.pad_token_id)

    def save_pretrained(self, folder: Path) -> None:
        """Save both into a folder that already has the tokenizer."""
        super().save_pretrained(folder)
        _change(Path(folder) / "tokenizer_config.json", tokenizer_class="ParakeetTokenizer", pad_token=str(self._blank))


def image_processor(transform: ImageTransform) -> CLIPImageProcessorPil:
    """The transformers processor that gives the same tensors as evaluation here, up to fp32 rounding.

    `AutoImageProcessor` loads it for any model. It neither applies the EXIF orientation nor converts colour images to
    grey. If torchvision is installed, AutoImageProcessor uses it unless given `backend="pil"`; torchvision rounds
    differently when resizing.
    """
    height, width = transform.size
    square = height == width
    size = {"shortest_edge": height} if square else {"height": height, "width": width}
    return CLIPImageProcessorPil(
        size=size,
        do_center_crop=square,
        crop_size={"height": height, "width": width},
        image_mean=list(transform.mean),
        image_std=list(transform.std),
        do_convert_rgb=transform.channels == 3,
    )
