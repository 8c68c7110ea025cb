"""What `from_pretrained` loads, and its model card."""
