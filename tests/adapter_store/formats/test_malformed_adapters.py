"""A good adapter spoiled in one way each: every one is refused with its own reason, naming what is wrong."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_store.packs.reading import read_adapter
from rpc.errors import LorikeetError
from tests.support.store_adapters import HIDDEN, VOCABULARY, lora_config, toy_pack_layout, write_adapter
from tests.support.store_adapters import lora_tensors as lora

P = "base_model.model."
Q, K, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
A, B = f"{P}{Q}.lora_A.weight", f"{P}{Q}.lora_B.weight"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

Spoil = Callable[[Path], object]


def config(**changes: Any) -> Spoil:
    return lambda folder: write_adapter(folder, config=lora_config(**changes))


def raw_config(data: bytes) -> Spoil:
    return lambda folder: (folder / CONFIG).write_bytes(data)


def tensors(changes: dict[str, np.ndarray | None], **options: Any) -> Spoil:
    """Tensors to replace, add or (None) drop."""

    def spoil(folder: Path) -> None:
        kept = {name: values for name, values in (lora() | changes).items() if values is not None}
        write_adapter(folder, kept, lora_config(**options))

    return spoil


def ones(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.ones(shape, dtype)


def poisoned(name: str, value: float) -> np.ndarray:
    values = lora()[name]
    values[1, 2] = value
    return values


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Changes the weights' header, and leaves the data as it is."""

    def spoil(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + length])
        change(content)
        text = json.dumps(content).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def weights(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def index(content: Any, shards: int = 2) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        write_adapter(folder, shards=shards)
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content))

    return spoil


def replaced(**values: Any) -> Spoil:
    return header(lambda content: content[A].update(values))


HUGE = 1 << 62
HEAD = {f"{P}lm_head.weight": ones(VOCABULARY, HIDDEN)}
LAST = 8 * 1024 * 1024 * 1024

# What spoils it, the reason, and what the message must name.
CASES: dict[str, tuple[Spoil, str, str]] = {
    # Files.
    "empty weights": (weights(lambda data: b""), "BAD_FILE", "truncated: 0 bytes"),
    "no header": (weights(lambda data: data[:7]), "BAD_FILE", "truncated: 7 bytes"),
    "half a header": (weights(lambda data: data[:100]), "BAD_FILE", "truncated: the header takes"),
    "half the data": (weights(lambda data: data[:-200]), "BAD_FILE", "the file is truncated or lies"),
    "one byte too many": (weights(lambda data: data + b"x"), "BAD_FILE", "1 bytes at its end"),
    "a header of exabytes": (weights(lambda data: b"\xff" * 8 + data[8:]), "BAD_FILE", "never honest"),
    "a git lfs pointer": (
        weights(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "BAD_FILE",
        "git lfs pull",
    ),
    "a pytorch archive": (weights(lambda data: b"PK\x03\x04" + data), "BAD_FILE", "not safetensors"),
    "a pickle": (weights(lambda data: b"\x80\x04\x95" + b"\xff" * 64), "BAD_FILE", "a pickle"),
    "a header that is no JSON": (
        weights(lambda data: data[:8] + b"?" + data[9:]), "BAD_FILE", "not valid JSON",
    ),
    "a header that is a list": (
        weights(lambda data: struct.pack("<Q", 2) + b"[]"), "BAD_FILE", "not a JSON object",
    ),
    "a header that is not UTF-8": (
        weights(lambda data: struct.pack("<Q", 5) + b'{"\xff":'), "BAD_FILE", "not valid JSON",
    ),
    "a header nested without end": (
        weights(lambda data: struct.pack("<Q", 60_000) + b'{"a":' * 12_000), "BAD_FILE", "nested too deeply",
    ),
    "a header of empty lists": (
        weights(lambda data: struct.pack("<Q", 1_500_000) + b"[]," * 500_000),
        "BAD_FILE",
        "objects and lists",
    ),
    "a tensor twice": (
        weights(lambda data: struct.pack("<Q", 15) + b'{"a":1, "a":2} '), "BAD_FILE", "a stands there twice",
    ),
    "overlapping tensors": (header(lambda c: c.update(x=c[A])), "BAD_FILE", "overlaps the tensor before it"),
    "a gap": (header(lambda content: content.pop(B)), "BAD_FILE", "leaves a gap"),
    "a shape that lies": (replaced(shape=[4, 17]), "BAD_FILE", "F32[4, 17] does not take"),
    "offsets backwards": (replaced(data_offsets=[256, 0]), "BAD_FILE", "impossible offsets [256, 0]"),
    "offsets behind the end": (replaced(data_offsets=[0, LAST]), "BAD_FILE", f"ends at byte {LAST}"),
    "negative offsets": (replaced(data_offsets=[-256, 0]), "BAD_FILE", "impossible offsets"),
    "offsets of floats": (replaced(data_offsets=[0.0, 256.0]), "BAD_FILE", "impossible offsets"),
    "an overflowing shape": (replaced(shape=[HUGE, HUGE]), "BAD_FILE", "impossible shape"),
    "many dimensions": (replaced(shape=[1] * 100), "BAD_FILE", "impossible shape"),
    "a shape of booleans": (replaced(shape=[True, 64]), "BAD_FILE", "impossible shape [True, 64]"),
    "an unknown dtype": (replaced(dtype="F31"), "BAD_FILE", "unknown dtype 'F31'"),
    "a dtype that is a list": (replaced(dtype=[]), "BAD_FILE", "unknown dtype '[]'"),
    "a key too many": (replaced(comment="x"), "BAD_FILE", "and nothing else"),
    "a tensor without a shape": (header(lambda c: c[A].pop("shape")), "BAD_FILE", "needs dtype, shape"),
    "a tensor that is a number": (header(lambda c: c.update({A: 7})), "BAD_FILE", f"tensor {A} needs"),
    "a name with a line break": (
        header(lambda c: c.update({"a\nb": c.pop(A)})), "BAD_FILE", r"the impossible name a\nb",
    ),
    "an index without a map": (index({}), "BAD_FILE", "no weight_map"),
    "an index out of the folder": (
        index({"weight_map": {A: "../x.safetensors"}}), "BAD_FILE", "not the name of a safetensors file",
    ),
    "an index that forgets tensors": (
        index({"weight_map": {A: "adapter_model-00001-of-00002.safetensors"}}), "BAD_FILE", "is not in",
    ),
    # Configs.
    "a config that is no JSON": (raw_config(b"{"), "BAD_CONFIG", "not valid JSON"),
    "a config that is a list": (raw_config(b"[]"), "BAD_CONFIG", "not a JSON object"),
    "a config of megabytes": (raw_config(b" " * (5 << 20)), "BAD_CONFIG", "larger than"),
    "a config with NaN": (raw_config(b'{"lora_alpha": NaN}'), "BAD_CONFIG", "NaN is not a number"),
    "a config in UTF-16": (raw_config('{"r": 4}'.encode("utf-16")), "PEFT_TYPE", "peft_type is null"),
    "another method": (config(peft_type="LOHA"), "PEFT_TYPE", 'peft_type is "LOHA"'),
    "no rank": (config(r=None), "BAD_CONFIG", "r is missing"),
    "a negative rank": (config(r=-4), "BAD_CONFIG", "r is -4"),
    "a fractional rank": (config(r=4.5), "BAD_CONFIG", "r is 4.5"),
    "no alpha": (config(lora_alpha=None), "BAD_CONFIG", "lora_alpha is missing"),
    "an infinite alpha": (config(lora_alpha=10**40), "BAD_CONFIG", "lora_alpha is 1"),
    "a rank pattern to a string": (config(rank_pattern={"q_proj": "4"}), "BAD_CONFIG", "['q_proj'] is"),
    "a pattern that is no regex": (config(alpha_pattern={"[q": 4}), "BAD_PATTERN", "alpha_pattern: '[q'"),
    "an exponential pattern": (
        config(rank_pattern={"(q+)+!": 4}), "PATTERN_TOO_COMPLEX", "rank_pattern: the pattern '(q+)+!'",
    ),
    "a pattern for nothing": (config(rank_pattern={"k_proj": 4}), "UNUSED_PATTERN", "rank_pattern: 'k_proj'"),
    "a target of another model": (
        config(target_modules=["q_proj", "v_proj", "c_attn"]), "UNKNOWN_TARGET", "'c_attn' names nothing",
    ),
    "activated LoRA": (config(alora_invocation_tokens=[1]), "UNSUPPORTED_OPTION", "alora_invocation_tokens"),
    "unconverted PiSSA": (config(init_lora_weights="pissa"), "UNSUPPORTED_OPTION", "modified base"),
    "unconverted OLoRA": (config(init_lora_weights="olora"), "UNSUPPORTED_OPTION", '"olora"'),
    "unconverted CorDA": (config(init_lora_weights="corda"), "UNSUPPORTED_OPTION", '"corda"'),
    "LoftQ": (config(init_lora_weights="loftq"), "UNSUPPORTED_OPTION", '"loftq"'),
    "QA-LoRA": (config(use_qalora=True), "UNSUPPORTED_OPTION", "use_qalora=true"),
    "replicated layers": (config(layer_replication=[[0, 2]]), "UNSUPPORTED_OPTION", "layer_replication"),
    "token rows": (config(trainable_token_indices=[3]), "UNSUPPORTED_OPTION", "trainable_token_indices"),
    "parameters of another model": (
        config(target_parameters=["mlp.experts.down_proj"]), "UNKNOWN_TARGET", "target_parameters: 'mlp.exp",
    ),
    "parameters that are no list": (
        config(target_parameters="down_proj"), "BAD_CONFIG", 'target_parameters is "down_proj"',
    ),
    "Conv1D weights": (config(fan_in_fan_out=True), "UNSUPPORTED_OPTION", "fan_in_fan_out=true"),
    "an option of tomorrow": (config(use_warp=2), "UNSUPPORTED_OPTION", "use_warp=2"),
    "norms saved whole": (config(modules_to_save=["norm"]), "UNSUPPORTED_OPTION", "'norm' names nothing"),
    "a linear saved whole": (config(modules_to_save=["up_proj"]), "UNSUPPORTED_OPTION", "means model."),
    "an unknown bias": (config(bias="most"), "BAD_CONFIG", 'bias is "most"'),
    "DoRA with a bias": (config(use_dora=True, lora_bias=True), "BAD_CONFIG", "exclude each other"),
    # Tensors.
    "no tensors": (lambda folder: write_adapter(folder, {}), "NO_TENSORS", "no LoRA tensors"),
    "no prefix": (tensors({"lm_head.lora_A.weight": ones(4, 16)}), "UNKNOWN_TENSOR", "lm_head.lora_A.weight"),
    "an unknown part": (tensors({f"{P}{Q}.lora_C.weight": ones(4)}), "UNKNOWN_TENSOR", "lora_C"),
    "an adapter's name inside": (
        tensors({f"{P}{Q}.lora_A.default.weight": ones(4)}), "UNKNOWN_TENSOR", "lora_A.default",
    ),
    "an unknown module": (
        tensors({f"{P}model.layers.9.mlp.up_proj.lora_A.weight": ones(4, 16)}),
        "UNKNOWN_MODULE",
        "model.layers.9.mlp.up_proj",
    ),
    "no lora_A": (tensors({A: None}), "MISSING_PARTNER", "has no lora_A"),
    "no lora_B": (tensors({B: None}), "MISSING_PARTNER", "has no lora_B"),
    "a target without tensors": (tensors({A: None, B: None}), "MISSING_TENSORS", Q),
    "tensors without a target": (
        tensors({f"{P}{K}.lora_A.weight": ones(4, 16), f"{P}{K}.lora_B.weight": ones(8, 4)}),
        "UNTARGETED_MODULE",
        K,
    ),
    "another hidden size": (tensors({A: ones(4, 24)}), "WRONG_SHAPE", "[4, 24], this base needs [rank, 16]"),
    "another number of heads": (tensors({B: ones(64, 4)}), "WRONG_SHAPE", "[64, 4], this base needs [32, 4]"),
    "three dimensions": (tensors({A: ones(4, 16, 1)}), "WRONG_SHAPE", "is [4, 16, 1]"),
    "a rank that is not the config's": (
        tensors({A: ones(8, 16), B: ones(32, 8)}), "RANK_MISMATCH", f"{Q}: its tensors have rank 8",
    ),
    "ranks that differ": (tensors({B: ones(32, 8)}), "WRONG_SHAPE", "this base needs [32, 4]"),
    "rank 0": (tensors({A: ones(0, 16), B: ones(32, 0)}), "RANK_MISMATCH", "have rank 0"),
    "a rank above the maximum": (
        lambda folder: write_adapter(folder, lora(rank=65), lora_config(r=65)), "RANK_TOO_LARGE", "rank 65",
    ),
    "double precision": (tensors({A: ones(4, 16, dtype="f8")}), "UNSUPPORTED_DTYPE", f"{A} is F64"),
    "whole numbers": (tensors({A: ones(4, 16, dtype="i4")}), "UNSUPPORTED_DTYPE", f"{A} is I32"),
    "a NaN": (tensors({A: poisoned(A, np.nan)}), "NOT_FINITE", A),
    "an infinity": (tensors({B: poisoned(B, np.inf)}), "NOT_FINITE", B),
    "an embedding's LoRA on a linear": (
        tensors({f"{P}{Q}.lora_embedding_A": ones(4, 16)}), "UNKNOWN_TENSOR", "is a linear layer",
    ),
    "a copy of a weight": (tensors({f"{P}{Q}.base_layer.weight": ones(32, 16)}), "UNKNOWN_TENSOR", "a copy"),
    "a magnitude without DoRA": (
        tensors({f"{P}{Q}.lora_magnitude_vector": ones(32)}), "OPTION_MISMATCH", "not set use_dora",
    ),
    "DoRA without magnitudes": (tensors({}, use_dora=True), "MISSING_PARTNER", "lora_magnitude_vector"),
    "a bias on lora_B that no option wants": (
        tensors({f"{P}{Q}.lora_B.bias": ones(32)}), "OPTION_MISMATCH", "does not set lora_bias",
    ),
    "lora_bias without biases": (tensors({}, lora_bias=True), "MISSING_PARTNER", "has no bias on lora_B"),
    "a bias that the config does not train": (
        tensors({f"{P}{Q}.base_layer.bias": ones(32)}), "OPTION_MISMATCH", "bias='none'",
    ),
    "a bias in the wrong place": (
        tensors({f"{P}{Q}.bias": ones(32)}, bias="lora_only"), "UNKNOWN_TENSOR", "not where PEFT keeps",
    ),
    "a bias of a module that has none": (
        tensors({f"{P}model.layers.0.mlp.up_proj.bias": ones(24)}, bias="all"), "NO_BIAS", "mlp.up_proj",
    ),
    "trained biases that are missing": (tensors({}, bias="lora_only"), "MISSING_TENSORS", "bias='lora_only'"),
    "a bias of a norm": (
        tensors({f"{P}model.norm.bias": ones(16)}, bias="all"), "UNSUPPORTED_TENSOR", "model.norm",
    ),
    "a norm's weight": (tensors({f"{P}model.norm.weight": ones(16)}), "UNSUPPORTED_TENSOR", "model.norm"),
    "a linear's whole weight": (tensors({f"{P}{Q}.weight": ones(32, 16)}), "UNSUPPORTED_TENSOR", Q),
    "a head that the config does not save": (tensors({**HEAD}), "UNTARGETED_MODULE", "lm_head"),
    "a saved head that is missing": (tensors({}, modules_to_save=["lm_head"]), "MISSING_TENSORS", "lm_head"),
    "a head for more tokens": (
        tensors({f"{P}lm_head.weight": ones(VOCABULARY + 2, HIDDEN)}, modules_to_save=["lm_head"]),
        "WRONG_VOCABULARY",
        "is [42, 16], this base needs [40, 16]",
    ),
    "a head of another base": (
        tensors({f"{P}lm_head.weight": ones(VOCABULARY, 24)}, modules_to_save=["lm_head"]),
        "WRONG_SHAPE",
        "is [40, 24]",
    ),
    "one trained token": (
        tensors({f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta": ones(1, 16)}),
        "UNSUPPORTED_TENSOR",
        "trainable_token_indices",
    ),
    "fused experts": (
        tensors({f"{P}model.layers.0.mlp.experts.lora_A.weight": ones(8, 16)}),
        "UNKNOWN_MODULE",
        "has no experts at model.layers.0.mlp.experts",
    ),
    "a magnitude of the wrong length": (
        tensors(
            {
                f"{P}model.layers.{n}.self_attn.{m}_proj.lora_magnitude_vector": ones(31)
                for n in (0, 1)
                for m in "qv"
            },
            use_dora=True,
        ),
        "WRONG_SHAPE",
        "is [31], this base needs [32]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_spoiled_adapter_is_refused_with_its_own_reason(tmp_path, case):
    spoil, reason, named = CASES[case]
    layout = toy_pack_layout(biases=True)
    read_adapter(write_adapter(tmp_path), layout)
    spoil(tmp_path)
    with pytest.raises(LorikeetError) as caught:
        read_adapter(tmp_path, layout)
    assert caught.value.reason == reason
    assert named in caught.value.message
    assert caught.value.code.name in ("INVALID_ARGUMENT", "UNIMPLEMENTED")


def test_there_are_many_and_each_says_something_else():
    assert len(CASES) >= 100
    assert len({(reason, named) for _, reason, named in CASES.values()}) > 0.9 * len(CASES)
