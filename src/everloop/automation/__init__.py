"""Triggers, policies, and the supervisor that closes the loop."""
