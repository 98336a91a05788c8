"""Executors: where payloads are executed that do not fit this machine."""
