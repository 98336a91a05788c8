"""Adapters of the exec port."""
