"""The catalog: SQL tables and statements, transactions, and the event log.

One implementation for SQLite and PostgreSQL. Small rows only: bytes go to the object store.
"""
