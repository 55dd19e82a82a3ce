"""The store's two gRPC services, and what they and Prometheus tell."""
