"""The engine: what each step computes, and who gets rows, pages and adapter slots. No torch, no gRPC."""
