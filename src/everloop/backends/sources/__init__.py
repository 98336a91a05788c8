"""Where data comes from: HTTP, object stores, PostgreSQL, SQLite."""
