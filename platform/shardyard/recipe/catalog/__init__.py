"""What comes with Shardyard: recipes, tokenizer specs, cluster templates, data sets, and the schemas for editors."""
