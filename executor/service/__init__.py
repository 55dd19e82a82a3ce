"""The executor as a gRPC service: streams of frontends in, engine steps out."""
