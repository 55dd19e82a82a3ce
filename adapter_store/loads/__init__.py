"""Loads, wherever they come from: calls, uploads, unknown names, a watched folder."""
