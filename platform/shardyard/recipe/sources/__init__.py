"""The data that sources of a recipe name: which files these are, what they hold, and which columns are read."""
