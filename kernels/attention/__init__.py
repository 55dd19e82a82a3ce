"""Attention of new tokens over keys and values that lie in pages.

`attend` serves decoding (one query a row, the keys split over programs) and chunks of prompts (many
queries, cached prefixes before them) alike; `reference` defines what it computes. `paged` does it fast,
`fixed` in an order that does not depend on the batch, `decode` for few rows that all decode, together with
what comes before. They import Triton, this module does not.
"""

from kernels.attention.tiles import QueryTiles

__all__ = ["QueryTiles"]
