"""What a step computes on, with or without a GPU: each kernel beside its definition in plain torch."""
