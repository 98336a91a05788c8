"""Boxes that keep secrets."""
