"""What ships with Shardyard: recipes, tokenizer specs, cluster templates, datasets, and the schemas for editors."""
