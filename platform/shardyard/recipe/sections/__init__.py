"""The sections of a recipe, one file per subject. `recipe/schema.py` combines them."""
