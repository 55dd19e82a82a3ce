"""How products of experts are cut into programs: measured for an H100, a rule for what was not."""

from typing import NamedTuple


class Tile(NamedTuple):
    """A program computes `rows` outputs of up to `pairs` pairs of one expert, `block_k` inputs at a time."""

    pairs: int
    rows: int
    block_k: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """Both products of a layer; the pairs of their tiles are the same."""

    gate_up: Tile
    down: Tile


def choose(tokens: int, top_k: int, experts: int) -> Tiles:
    """By the number of pairs that an expert has when all are chosen alike."""
    share = tokens * top_k / experts
    if share <= 12:
        return Tiles(Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4))
    if share <= 24:
        return Tiles(Tile(32, 64, 128, 4, 4), Tile(32, 64, 128, 4, 4))
    if share <= 96:
        return Tiles(Tile(64, 128, 64, 8, 3), Tile(64, 64, 64, 4, 4))
    return Tiles(Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 3))
