"""Where packs live: the disk tier (cold) and the shared-memory arena (warm)."""
