"""Choosing tokens without sorting logits: `largest` takes the most probable, `cut` keeps what top-k and top-p
keep, `gpu` draws in one pass. All import Triton, this module does not.

What is drawn is defined by the noise of `executor.sampling.noise`: argmax of logits plus Gumbel noise.
"""
