"""Notifiers: what carries messages out of the house."""
