"""Small protocols for what lies outside: bytes, online values."""
