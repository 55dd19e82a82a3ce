"""The model with its requests and resident adapters: token ids in, tokens out."""
