"""Embeddings of texts: vectors whose cosine says how well texts belong together."""
