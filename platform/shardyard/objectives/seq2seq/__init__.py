"""Text to text with an encoder and a decoder."""
