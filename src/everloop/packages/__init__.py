"""Packages: what was built, in which environment it is, and files that carry it elsewhere."""
