"""Datasets: versions, checks, the row ledger, and the objects they are made of."""
