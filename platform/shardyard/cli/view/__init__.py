"""What commands print: tables, progress, curves; and how names are completed."""
