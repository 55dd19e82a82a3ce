"""Rotary position embedding: which frequencies a checkpoint asks for, and how positions become cosines and
sines.

Legend: L positions, D head dimension, F = D / 2 frequencies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from executor.model.options import number, refuse_unknown

_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_OPTIONS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "finetuned",  # a note by the checkpoint's author, no arithmetic
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Checked rotary options. `attention_factor` scales cosines and sines, hence scores by its square.

    Fields that a rope type does not use keep their neutral value.
    """

    rope_type: str
    theta: float
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @classmethod
    def parse(
        cls, raw: Mapping[str, Any], *, max_positions: int, default_theta: float = 10_000.0
    ) -> "RopeConfig":
        """Read either spelling: `rope_parameters`, or `rope_theta` beside `rope_scaling`.

        Raises ValueError naming the option where it is malformed or not supported.
        """
        options = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
        rope_type = str(options.get("rope_type", options.get("type", "default")))
        if rope_type not in _OPTIONS:
            raise ValueError(f"rope type {rope_type!r} is not supported; supported are {', '.join(_OPTIONS)}")
        refuse_unknown(options, (*_COMMON, *_OPTIONS[rope_type]), f"rope type {rope_type!r}")
        partial = options.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise ValueError(
                f"partial_rotary_factor {partial} is not supported; only whole heads are rotated (1.0)"
            )
        theta = number(
            options, "rope_theta", default=number(raw, "rope_theta", default=default_theta), above=1
        )
        if rope_type == "default":
            return cls(rope_type=rope_type, theta=theta)
        if rope_type == "linear":
            return cls(rope_type=rope_type, theta=theta, factor=number(options, "factor", above=0))
        original = int(
            raw.get("original_max_position_embeddings")
            or options.get("original_max_position_embeddings")
            or max_positions
        )
        if rope_type == "llama3":
            return cls(
                rope_type=rope_type,
                theta=theta,
                factor=number(options, "factor", above=0),
                original_context=original,
                low_freq_factor=number(options, "low_freq_factor", above=0),
                high_freq_factor=number(options, "high_freq_factor", above=0),
            )
        return cls._parse_yarn(options, theta=theta, original=original, max_positions=max_positions)

    @classmethod
    def _parse_yarn(
        cls, options: Mapping[str, Any], *, theta: float, original: int, max_positions: int
    ) -> "RopeConfig":
        factor = number(options, "factor", default=max_positions / original, above=0)
        mscale = number(options, "mscale", default=0.0)
        mscale_all_dim = number(options, "mscale_all_dim", default=0.0)
        if mscale and mscale_all_dim:
            inferred = _yarn_magnitude(factor, mscale) / _yarn_magnitude(factor, mscale_all_dim)
        else:
            inferred = _yarn_magnitude(factor, 1.0)
        return cls(
            rope_type="yarn",
            theta=theta,
            factor=factor,
            original_context=original,
            beta_fast=number(options, "beta_fast", default=0.0) or 32.0,
            beta_slow=number(options, "beta_slow", default=0.0) or 1.0,
            truncate=bool(options.get("truncate", True)),
            attention_factor=number(options, "attention_factor", default=inferred, above=0),
        )

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians per position of each pair of dimensions: float32 `[F]`.

        Sources: RoPE (Su et al. 2021), position interpolation (Chen et al. 2023), YaRN (Peng et al. 2023)
        and the scheme published with Llama 3.1.
        """
        exponents_F = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        plain_F = 1.0 / (self.theta**exponents_F)
        if self.rope_type == "linear":
            return plain_F / self.factor
        if self.rope_type == "llama3":
            return self._llama3(plain_F)
        if self.rope_type == "yarn":
            return self._yarn(plain_F, exponents_F, head_dim)
        return plain_F

    def _llama3(self, plain_F: Tensor) -> Tensor:
        """Keep short wavelengths, stretch long ones by `factor`, blend between."""
        turns_F = self.original_context / (2 * math.pi / plain_F)
        blend_F = (turns_F - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended_F = (1 - blend_F) * plain_F / self.factor + blend_F * plain_F
        stretched_F = torch.where(turns_F < self.low_freq_factor, plain_F / self.factor, blended_F)
        return torch.where(turns_F > self.high_freq_factor, plain_F, stretched_F)

    def _yarn(self, plain_F: Tensor, exponents_F: Tensor, head_dim: int) -> Tensor:
        """A ramp over dimensions: fast rotations stay, slow ones are stretched by `factor`."""

        def dimension_turning(turns: float) -> float:
            return (
                head_dim
                * math.log(self.original_context / (turns * 2 * math.pi))
                / (2 * math.log(self.theta))
            )

        low, high = dimension_turning(self.beta_fast), dimension_turning(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low or 0.001
        kept_F = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        stretched_F = 1.0 / (self.factor * self.theta**exponents_F)
        return stretched_F * (1 - kept_F) + plain_F * kept_F


def _yarn_magnitude(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_tables(
    config: RopeConfig, *, head_dim: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of positions below `length`, both `[length, D]`; a head x becomes `x * cos +
    roll(x, D / 2) * sin`, which rotates the pairs (i, i + F).
    """
    angles_LF = torch.arange(length, device=device)[:, None].float() * config.frequencies(head_dim).to(device)
    cos_LF, sin_LF = angles_LF.cos(), angles_LF.sin()
    cos_LD = torch.cat((cos_LF, cos_LF), dim=-1)
    sin_LD = torch.cat((-sin_LF, sin_LF), dim=-1)
    if config.attention_factor != 1.0:
        cos_LD, sin_LD = cos_LD * config.attention_factor, sin_LD * config.attention_factor
    return cos_LD.to(dtype), sin_LD.to(dtype)
