"""Features: one definition for training and serving, as known at the time."""
