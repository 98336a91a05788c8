"""Metrics with their uncertainty, gates, and the verdicts that they give."""
