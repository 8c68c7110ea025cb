"""Which source each row comes from: even draws, budgets and stages."""
