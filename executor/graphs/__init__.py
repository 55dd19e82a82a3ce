"""Steps recorded once and replayed, so that the host launches one graph instead of hundreds of kernels."""
