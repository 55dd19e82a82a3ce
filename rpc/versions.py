"""What both ends of a connection must agree on."""

PROTOCOL_VERSION = 1
"""Of the stream between frontend and executor; raised when an older peer could misread a message."""
