"""Where documents come from: files, URLs, the hub, embedded corpora; and what is tried again."""
