"""Profiles of training steps: recording them, where their time goes, and what to change first."""
