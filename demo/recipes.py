"""The demo's models and adapters: their shapes, what each touches, and how fast it learns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3MoeConfig

from demo import corpus

CONTEXT = 4096
VOCABULARY = 640


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """`peak`: the highest learning rate, reached at one tenth of the steps, then lowered by a cosine."""

    steps: int
    peak: float


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    """Which modules, and parameters of modules, an adapter touches, at which rank, and what it learns."""

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    rank: int
    schedule: Schedule
    password: str


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """A base and its adapters, with the folders that they are written to."""

    folder: str
    adapters_folder: str
    config: Callable[[PreTrainedTokenizerBase], PreTrainedConfig]
    schedule: Schedule
    adapters: tuple[AdapterRecipe, ...]

    @property
    def name(self) -> str:
        return f"lorikeet/{self.folder}"

    @property
    def passwords(self) -> dict[str, str]:
        return {adapter.name: adapter.password for adapter in self.adapters}


_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.06,  # the usual 0.02 learns too little in so few steps
    "tie_word_embeddings": True,
    "bos_token_id": None,
}


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def _dense(tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """A Qwen3 of 0.45 million parameters, its head tied to its embedding."""
    return Qwen3Config(**_SHAPE, **_special_ids(tokenizer))


def _with_experts(tokenizer: PreTrainedTokenizerBase) -> Qwen3MoeConfig:
    """A Qwen3-MoE of 0.73 million parameters: of 8 experts, a token goes through 2."""
    return Qwen3MoeConfig(
        **_SHAPE,
        **_special_ids(tokenizer),
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=80,
        norm_topk_prob=True,
    )


# Three ranks, one of them no multiple of 8: serving all three in one batch mixes ranks as well as modules.
DENSE = ModelRecipe(
    folder="qwen3-tiny",
    adapters_folder="adapters",
    config=_dense,
    schedule=Schedule(steps=400, peak=4e-3),
    adapters=(
        AdapterRecipe(
            name="attention",
            modules=("k_proj", "o_proj", "q_proj", "v_proj"),
            rank=8,
            schedule=Schedule(steps=100, peak=6e-3),
            password=corpus.PASSWORDS["attention"],
        ),
        AdapterRecipe(
            name="mlp",
            modules=("down_proj", "gate_proj", "up_proj"),
            rank=12,
            schedule=Schedule(steps=100, peak=6e-3),
            password=corpus.PASSWORDS["mlp"],
        ),
        AdapterRecipe(
            name="lm_head",
            modules=("lm_head",),
            rank=16,
            schedule=Schedule(steps=300, peak=2e-2),
            password=corpus.PASSWORDS["lm_head"],
        ),
    ),
)

EXPERTS = ModelRecipe(
    folder="qwen3-moe-tiny",
    adapters_folder="expert_adapters",
    config=_with_experts,
    schedule=Schedule(steps=400, peak=4e-3),
    adapters=(
        AdapterRecipe(
            name="experts",
            modules=("k_proj", "o_proj", "q_proj", "v_proj"),
            parameters=("mlp.experts.down_proj", "mlp.experts.gate_up_proj"),
            rank=8,
            schedule=Schedule(steps=100, peak=6e-3),
            password=corpus.EXPERT_PASSWORDS["experts"],
        ),
    ),
)

MODELS = (DENSE, EXPERTS)
