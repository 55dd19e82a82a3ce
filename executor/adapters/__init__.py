"""How adapters reach the executor: leases of packs from the store, copied into the pool."""
