"""Pipelines of plain functions: keys, stored results, runs that resume."""
