"""The decoder: configuration, weights, KV cache, attention, and where adapters lie."""
