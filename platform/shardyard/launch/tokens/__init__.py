"""Tokenising the data of a recipe: by processes of this machine or by tasks of a Ray cluster."""
