"""Distillation of a teacher."""
