"""Adapters of the online port."""
