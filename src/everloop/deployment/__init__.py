"""Deployments, rollouts, the split of traffic, and the log of predictions and labels."""
