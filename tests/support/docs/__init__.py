"""The contents of the documentation pages, and how each command on them is checked."""
