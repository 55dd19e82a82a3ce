"""Names and the versions that they point to: decided here, without a clock, a thread or a file."""
