"""From an adapter's folder to its pack: planned, read once, hashed, filled; made again by a recipe."""
