"""Drawing tokens at random without sorting logits: `cut` keeps what top-k and top-p keep, `gpu` draws in one
pass. Both import Triton, this module does not.

What is drawn is defined by the noise of `executor.sampling.noise`: argmax of logits plus Gumbel noise.
"""
