"""Matrix products of few tokens with large weights, which only wait for memory.

`small_batch` is in Triton: it reads weights faster than cuBLAS does, of any shape up to 32 tokens and of
measured shapes up to 128. `matrix` is its kernel for more than one token, `gating` how `silu(gate) * up`
comes out of a product's own programs, `tiles` how both are launched. `fixed` serves any number of tokens, in
an order of sums that does not depend on how many there are.
"""
