"""The stream to the executor and what flies over it. Knows token ids and digests, and no client."""
