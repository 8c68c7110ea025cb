"""JSON documents as which data sets come: questions within paragraphs (SQuAD), captions beside images (COCO). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, object]


def rows_of_document(value: Any) -> list[Row] | None:
    """The rows of a document that is recognised; None if it is not."""
    if not isinstance(value, Mapping):
        return None
    return _of_squad(value.get("data")) or _of_coco(value.get("images"), value.get("annotations"))


def _of_squad(articles: Any) -> list[Row] | None:
    """SQuAD: articles of paragraphs of questions; each question becomes a row."""
    if not isinstance(articles, list) or not articles or not all(_has(article, "paragraphs") for article in articles):
        return None
    rows: list[Row] = []
    for article in articles:
        for paragraph in article["paragraphs"]:
            rows += [_question(paragraph, question) for question in paragraph.get("qas", ())]
    return rows


def _question(paragraph: Any, question: Any) -> Row:
    given = [] if question.get("is_impossible") else question.get("answers", ())
    answers = {name: [answer.get(name) for answer in given] for name in ("text", "answer_start")}
    told = {"id": question.get("id"), "question": question.get("question"), "context": paragraph.get("context")}
    return {**told, "answers": answers}


def _of_coco(images: Any, annotations: Any) -> list[Row] | None:
    """COCO: images by number, and captions that name the number of theirs; each caption becomes a row."""
    if not isinstance(images, list) or not isinstance(annotations, list) or not annotations:
        return None
    if not all(_has(image, "file_name") for image in images) or not all(_has(one, "caption") for one in annotations):
        return None
    names = {image.get("id"): image["file_name"] for image in images}
    return [{"image": names.get(one.get("image_id")), "caption": one["caption"]} for one in annotations]


def _has(value: Any, name: str) -> bool:
    return isinstance(value, Mapping) and name in value
