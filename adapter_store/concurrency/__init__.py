"""Threads, and what keeps concurrent work out of each other's way."""
