"""Experiments as a program sees them: open runs, log to them, compare what came of them."""
