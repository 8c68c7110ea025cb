"""Tokenizers made for tests."""
