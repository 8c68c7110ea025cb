"""The sections of a recipe, one file a subject. `recipe/schema.py` joins them."""
