"""Benchmarks: Everloop against raw limits and against the products that users would pick instead.

`python -m benchmarks` runs them. An area is a module `area_<name>.py`; `harness.py` says how to
write one.
"""
