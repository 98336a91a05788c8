"""Monitors: summaries, windows, drift, realised performance, alerts."""
