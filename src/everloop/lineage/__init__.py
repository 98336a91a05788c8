"""The graph of what led to what, and the readable side of the event log."""
