"""Export to a folder that `from_pretrained` loads, with a model card."""
