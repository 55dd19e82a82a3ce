"""Where adapters come from: folders, buckets, web servers, the hub. No state."""
