"""Output of commands: tables, progress, curves; and shell completion."""
