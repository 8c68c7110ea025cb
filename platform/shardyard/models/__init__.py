"""Model families on top of transformers: building, initialising, counting, exporting."""
