"""Rules that the schema cannot express: fields that are valid alone but not together."""
