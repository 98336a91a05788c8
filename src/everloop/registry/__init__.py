"""The model registry: versions as immutable manifests, aliases, states, and model formats."""
