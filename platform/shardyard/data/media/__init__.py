"""Images and audio: decoding, resampling, and the processors of transformers."""
