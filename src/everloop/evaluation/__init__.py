"""Metrics, paired tests, gates and their verdicts."""
