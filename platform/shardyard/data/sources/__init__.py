"""Sources of documents: files, URLs, the hub, embedded corpora; and retries."""
