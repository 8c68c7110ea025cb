"""The catalog of Shardyard: recipes, tokenizer specs, cluster templates, datasets, and the schemas for editors."""
