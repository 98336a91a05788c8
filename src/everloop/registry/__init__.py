"""Models, versions, aliases, and the flavors that pack and load them."""
