"""The class of an example, checked against the classes of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardyard.errors import UnusableRowError

_NAMED = 6


class Classes:
    """The classes of a model: their number, and the names that `model.labels` or a pretrained model gives them."""

    def __init__(self, model: Any) -> None:
        self.number = int(getattr(model, "num_labels", 0))
        names: Mapping[int, str] = getattr(model, "id2label", None) or {}
        self._numbers = {name: int(number) for number, name in names.items()}

    def number_of(self, label: int | str) -> int:
        """The number of a class, from its number or name.

        Raises:
            UnusableRowError: the model has no such class, or the label is negative, as data sets mark examples without
                a class.
        """
        if isinstance(label, str):
            if label in self._numbers:
                return self._numbers[label]
            names = ", ".join(list(self._numbers)[:_NAMED]) + (", …" if len(self._numbers) > _NAMED else "")
            raise UnusableRowError(
                "a label that names no class of the model",
                f"{label!r:.60} is none of {names}; name all in model.labels",
            )
        if label < 0:
            raise UnusableRowError(f"the label {label}, which stands for no class")
        if label >= self.number:
            raise UnusableRowError(
                f"a label for which the model has no class: it has {self.number} classes, 0 to {self.number - 1}",
                f"the label is {label}; set num_labels in model.config, or name all classes in model.labels",
            )
        return label
