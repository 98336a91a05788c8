"""Adapters of the blobs port."""
