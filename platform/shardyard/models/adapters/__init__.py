"""Adapters: LoRA, and base weights in 4 bits (NF4)."""
