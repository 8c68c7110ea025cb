"""DeepSpeed's engine, and where its way of working is changed."""
