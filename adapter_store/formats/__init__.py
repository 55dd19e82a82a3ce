"""Adapters as people have them on disk: read, checked, identified, packed. No state, no sockets."""
