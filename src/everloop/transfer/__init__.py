"""Taking in what was made elsewhere: MLflow's stores, and other workspaces."""
