"""Loading: from YAML text and overrides to a checked recipe, or to all of its problems at once."""
