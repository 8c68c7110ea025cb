"""The ledger of a run: which documents its steps were trained on."""
