"""What the pages show to a reader, and what becomes of each command of them."""
