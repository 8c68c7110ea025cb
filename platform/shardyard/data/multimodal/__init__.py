"""Pictures within text: processors of vision–language models, and rows made by them."""
