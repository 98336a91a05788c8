"""Adapters of the notify port."""
