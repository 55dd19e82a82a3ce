"""Which experts a token goes to, and with which weights.

Legend: T tokens, E experts, X experts of a token.
"""

from enum import Enum
from typing import NamedTuple

from torch import Tensor


class RouterForm(Enum):
    """What the weights of a token's experts are.

    Of a softmax over all experts, the chosen ones either keep their shares (`SHARES`) or divide 1 among
    themselves (`NORMALISED`). The latter is also a softmax over the chosen ones' logits alone, so that it
    serves families that choose before the softmax.
    """

    SHARES = "shares"
    NORMALISED = "normalised"


class Routing(NamedTuple):
    """Pair p = t * X + x is token t at its x-th expert.

    experts int32 `[T, X]`, -1 in rows that are padding: such a pair computes nothing and adds nothing,
    whatever its weight. weights float32 `[T, X]`, final. A token's experts differ, but for -1.
    """

    experts_TX: Tensor
    weights_TX: Tensor


def route(logits_TE: Tensor, *, top_k: int, form: RouterForm) -> Routing:
    """Choose each token's `top_k` experts by their logits, the largest first.

    Semantics: `experts = topk(logits)`, `weights = softmax(logits)[experts]`, divided by their sum where
    normalised; the softmax in float32. Logits of any float dtype. Nothing waits for the device.
    """
    chosen_TX, experts_TX = logits_TE.float().topk(top_k, dim=-1)
    if form is RouterForm.NORMALISED:
        weights_TX = chosen_TX.softmax(dim=-1)
    else:
        weights_TX = (chosen_TX - logits_TE.float().logsumexp(dim=-1, keepdim=True)).exp_()
    return Routing(experts_TX=experts_TX.int(), weights_TX=weights_TX)
