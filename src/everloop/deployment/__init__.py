"""Deployments, rollouts, assignment of traffic, and the log of predictions and labels."""
