"""Adapters as people have them on disk: read and checked against a layout. No state, no sockets."""
