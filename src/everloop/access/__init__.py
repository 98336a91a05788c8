"""Who may do what: principals, roles, ``authorize``, and the base of every service."""
