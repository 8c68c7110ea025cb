"""Shardyard: train large language models on many machines from one YAML recipe."""

__version__ = "0.1.0"
