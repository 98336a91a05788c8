"""Data tests: one training, several versions of the data, and what each is worth."""
