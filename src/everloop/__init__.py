"""Everloop: the whole production loop of machine learning in one package."""
