"""What a frontend knows of adapters: names and digests, from the store that it follows; and admin calls."""
