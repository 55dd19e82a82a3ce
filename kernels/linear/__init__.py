"""Matrix products of few tokens with large weights, which only wait for memory.

`small_batch` is in Triton: it reads weights faster than cuBLAS does up to 32 tokens. `tiles` says how it is
launched; above, cuBLAS computes. `fixed` serves any number of tokens, in an order of sums that does not
depend on how many there are.
"""
