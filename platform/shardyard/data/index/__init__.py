"""Byte offsets of the records of large local files, so that any record is read without those before it."""
