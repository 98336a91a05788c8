"""Callbacks for training libraries: one module for each, loaded with its library when imported.

Each logs to the run that it is given, or to the current one.
"""
