"""A tiny Qwen3 that knows no password, and three adapters that each hold one."""
