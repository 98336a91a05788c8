"""Serving: route snapshots, request validation, workers and their supervisor."""
