"""Chat templates of known formats, and conversations of every kind."""
