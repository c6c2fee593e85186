"""Probabilities -> a checked CSV, a score, the ledger."""
