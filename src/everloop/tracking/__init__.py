"""Experiments and runs: parameters, metrics, tags, inputs, artifacts."""
