"""What a rank records for those who watch it: its collectives, and its limits for them."""
