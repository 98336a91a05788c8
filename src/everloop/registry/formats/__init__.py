"""Flavors of single libraries, one file each; a library is imported when a model of it is met."""
