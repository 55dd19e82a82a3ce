"""Text in, text out: a service without state, of which there may be many."""
