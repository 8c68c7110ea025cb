"""DeepSpeed's engine, and workarounds for it."""
