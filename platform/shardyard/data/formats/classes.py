"""The class of an example, checked against the classes of the model."""

from __future__ import annotations

from shardyard.errors import DataError, UnusableRowError


def checked_class(label: int, classes: int) -> int:
    """The number of a class.

    Raises:
        UnusableRowError: it is negative, as data sets mark examples without a class.
        DataError: the model has fewer classes.
    """
    if label < 0:
        raise UnusableRowError(f"the label {label}, which stands for no class")
    if label >= classes:
        raise DataError(
            f"an example has the label {label}, but the model has {classes} classes, 0 to {classes - 1}; set "
            "num_labels in model.config to the number of classes."
        )
    return label
