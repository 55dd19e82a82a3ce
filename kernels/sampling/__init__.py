"""Drawing tokens at random in one pass over the logits; `gpu` imports Triton, this module does not.

What it computes is defined by the noise of `executor.sampling.noise`: argmax of logits plus Gumbel noise.
"""
