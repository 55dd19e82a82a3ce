"""The adapter store: names and versions, checks, packing, disk and memory tiers, leases. No torch."""
