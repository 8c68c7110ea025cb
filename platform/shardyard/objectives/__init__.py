"""Objectives: the loss and metrics of a batch."""
