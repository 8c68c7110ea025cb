"""Speech recognition by an encoder alone."""
