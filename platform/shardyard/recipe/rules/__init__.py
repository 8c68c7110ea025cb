"""Rules that the schema cannot see: fields that are each valid and yet do not go together."""
