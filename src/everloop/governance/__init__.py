"""Charters, cards, the story of a prediction and of a loop."""
