"""Contrastive language–audio pretraining."""
