"""Findings about data: sets of rows that become a rule, a work item or a new version."""
