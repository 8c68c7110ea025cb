"""Resolved recipes of earlier versions: fields whose default is another than what these runs did."""

from __future__ import annotations

from typing import Any


def complete(fields: Any) -> None:
    """Add to the fields of a resolved.yaml, which has every default of its time, what its run did before a field
    existed."""
    data = fields.get("data") if isinstance(fields, dict) else None
    if isinstance(data, dict):
        data.setdefault("special_tokens", "end")
        for source in (*(data.get("train") or ()), *(data.get("validation") or ())):
            if isinstance(source, dict):
                source.setdefault("documents", "file")
    model = fields.get("model") if isinstance(fields, dict) else None
    if isinstance(model, dict):
        model.setdefault("logits_chunk", 0)
    _complete_zero(fields)
    image = fields.get("image") if isinstance(fields, dict) else None
    if isinstance(image, dict):
        image.setdefault("background", None)
    audio = fields.get("audio") if isinstance(fields, dict) else None
    if isinstance(audio, dict):
        audio.setdefault("resampler", "fft")
        audio.setdefault("too_long", "beginning" if _is_whisper(fields.get("model")) else "unusable")


def _complete_zero(fields: Any) -> None:
    """Gradients were reduced in the precision of training, and added up in fp32 only by ZeRO in bf16."""
    zero, train = (fields.get(name) if isinstance(fields, dict) else None for name in ("zero", "train"))
    if isinstance(zero, dict) and isinstance(train, dict):
        precision = train.get("precision") or "fp32"
        sharded_bf16 = precision == "bf16" and zero.get("stage", 1) > 0
        zero.setdefault("communication_data_type", precision)
        zero.setdefault("grad_accum_dtype", "fp32" if sharded_bf16 else precision)


def _is_whisper(model: Any) -> bool:
    return isinstance(model, dict) and model.get("family") == "whisper"
