"""Gains and shifts against the formulas in float64, for a pack made by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from executor.adapters.pool import PackCopy
from executor.model import derivation
from executor.model.config import ModelConfig
from executor.model.layout import named_slices
from executor.model.parameters import Parameters
from executor.model.slots import AdapterPool
from executor.model.weights import load_parameters
from lorikeet.v1 import layout_pb2
from tests.support.oracle_checkpoints import make_checkpoint

SCALING, RANK = 0.75, 8
FORMS = {
    "model.layers.0.self_attn.q_proj": ("lora", "magnitude", "shift"),
    "model.layers.0.self_attn.k_proj": ("bias", "shift"),
    "model.layers.0.self_attn.v_proj": ("lora", "magnitude", "bias", "shift"),
    "model.layers.0.mlp.up_proj": ("lora", "magnitude"),
    "model.layers.1.self_attn.v_proj": ("lora", "lora_bias", "bias", "shift"),
    "model.layers.1.mlp.down_proj": ("lora", "lora_bias", "shift"),
    "model.embed_tokens": ("lora", "magnitude"),
    "lm_head": ("weight",),
}


class Made:
    """A pack in a pool over a base, and its tensors by (module, part)."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, unit_offset: int = 3) -> None:
        self.config = ModelConfig.load(folder)
        self.parameters: Parameters = load_parameters(folder, self.config, dtype=dtype)
        self.pool = AdapterPool(self.config, units=4000, slots=1, dtype=dtype, parameters=self.parameters)
        self.tensors: dict[tuple[str, str], Tensor] = {}
        self.manifest = layout_pb2.PackManifest(digest="d")
        self.unit_offset = unit_offset
        self._parts: list[bytes] = []
        torch.manual_seed(1)
        for index, named in enumerate(named_slices(self.config)):
            parts, shape = FORMS.get(named.module, ()), named.shape
            if not parts:
                continue
            place = self.manifest.slices.add(slice=index)
            if "lora" in parts:
                place.rank, place.padded_rank, place.scaling = RANK, RANK, SCALING
                a_rows = (RANK, shape.in_features) if shape.kind == "linear" else (shape.in_features, RANK)
                place.a_offset = self._put(named.module, "a", torch.randn(a_rows).to(dtype))
                place.b_offset = self._put(named.module, "b", torch.randn(shape.out_features, RANK).to(dtype))
            for part in parts:
                if part in ("magnitude", "lora_bias", "bias", "shift"):
                    vector = torch.rand(shape.out_features) + 0.5
                    setattr(place, f"{part}_offset", self._put(named.module, part, vector))
                elif part == "weight":
                    weight = torch.randn(shape.out_features, shape.in_features).to(dtype)
                    place.weight_offset = self._put(named.module, part, weight)
        self.manifest.total_bytes = sum(map(len, self._parts))
        self._row = self.pool.prepare(unit_offset, self.manifest)
        self.pool.write([PackCopy(0, unit_offset, b"".join(self._parts), self._row)])

    def _put(self, module: str, part: str, tensor: Tensor) -> int:
        offset = sum(map(len, self._parts))
        self.tensors[module, part] = tensor
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        self._parts.append(raw + bytes(-len(raw) % 128))
        return offset

    def derive(self) -> None:
        self.pool.complete(self.unit_offset, self.manifest, self._row)
        self.pool.install_slot(0, self._row)

    def expected(self, module: str) -> tuple[Tensor | None, Tensor | None]:
        """Gain and shift in float64."""
        tensors = {part: tensor.double() for (owner, part), tensor in self.tensors.items() if owner == module}
        base = self.parameters.destinations(self.config)
        weight, bias = base[f"{module}.weight"].double(), base.get(f"{module}.bias")
        bias = torch.zeros(()) if bias is None else bias.double()
        gain = shift = None
        if "magnitude" in tensors:
            if module == "model.embed_tokens":
                changed = weight.T + SCALING * tensors["b"] @ tensors["a"].T
            else:
                changed = weight + SCALING * tensors["b"] @ tensors["a"]
            gain = tensors["magnitude"] / changed.norm(dim=1)
        if "shift" in tensors:
            shift = tensors.get("bias", bias) - (1.0 if gain is None else gain) * bias
            shift = shift + SCALING * tensors.get("lora_bias", torch.zeros(()))
        return gain, shift


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("derivation"), "qwen2")


@pytest.mark.parametrize("chunk", [1, 300, 1 << 20], ids="{} elements at a time".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vectors(folder: Path, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivation, "_CPU_CHUNK", chunk)
    made = Made(folder, dtype=dtype)
    made.derive()
    for index, named in enumerate(named_slices(made.config)):
        weights, parts = made.pool.table.weights(0, index), FORMS.get(named.module, ())
        if not parts or parts == ("weight",):
            assert weights is None
            continue
        assert weights is not None
        for what, ours, true in zip(
            ("gain", "shift"), (weights.gain, weights.shift), made.expected(named.module), strict=True
        ):
            where = f"{what} of {named.module}"
            assert (ours is None) == (true is None), where
            if ours is not None and true is not None:
                torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6, msg=where)


def test_other_tensors_of_the_pack_stay(folder: Path) -> None:
    made = Made(folder, dtype=torch.float32)
    made.derive()
    q_proj = made.pool.table.weights(0, 0)
    assert q_proj is not None
    assert torch.equal(q_proj.a, made.tensors["model.layers.0.self_attn.q_proj", "a"])
    head = made.pool.table.saved_weight(0, len(made.pool.table.shapes) - 1)
    assert head is not None
    assert torch.equal(head, made.tensors["lm_head", "weight"])


def test_a_direction_of_length_zero_is_refused(folder: Path) -> None:
    made = Made(folder, dtype=torch.float32)
    made.parameters.destinations(made.config)["model.layers.0.mlp.up_proj.weight"][-3:].zero_()
    up = next(place for place in made.manifest.slices if place.slice == 5)
    start = made.unit_offset * 128 + up.b_offset
    made.pool.table.pool[start // 4 : start // 4 + 128 * RANK].zero_()
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj"):
        made.derive()


def test_a_pool_without_a_base_takes_plain_lora_only(folder: Path) -> None:
    made = Made(folder, dtype=torch.float32)
    pool = AdapterPool(made.config, units=4000, slots=1, dtype=torch.float32)
    with pytest.raises(ValueError, match="plain LoRA"):
        pool.prepare(0, made.manifest)
    plain = layout_pb2.SlicePlacement(slice=0, rank=8, padded_rank=8)
    pool.prepare(0, layout_pb2.PackManifest(slices=[plain], total_bytes=4000 * 128))
