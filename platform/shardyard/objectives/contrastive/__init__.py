"""Contrastive language-image pretraining."""
