"""Rerankers: a score for each document, read together with the query (cross-encoders)."""
