import json

import pytest

from adapter_store.formats.peft_config import parse_peft_config
from adapter_store.formats.targets import is_targeted
from rpc.errors import LorikeetError
from tests.support.store_adapters import lora_config


def parse(**changes):
    return parse_peft_config(json.dumps(lora_config(**changes)).encode())


def refusal(data: bytes) -> LorikeetError:
    with pytest.raises(LorikeetError) as caught:
        parse_peft_config(data)
    return caught.value


def test_scalings_and_ranks_follow_peft():
    config = parse(
        r=8,
        lora_alpha=16,
        rank_pattern={r".*layers\.1\.mlp\.down_proj": 16, "q_proj": 4},
        alpha_pattern={"v_proj": 32},
    )
    assert config.rank_of("model.layers.0.mlp.down_proj") == 8
    assert config.rank_of("model.layers.1.mlp.down_proj") == 16
    assert config.rank_of("model.layers.1.self_attn.q_proj") == 4
    assert config.scaling_of("model.layers.1.self_attn.q_proj", 4) == 4.0
    assert config.scaling_of("model.layers.0.self_attn.v_proj", 8) == 4.0


def test_the_first_matching_pattern_wins():
    config = parse(rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 4})
    assert config.rank_of("model.layers.0.self_attn.q_proj") == 2
    assert config.rank_of("model.layers.1.self_attn.q_proj") == 4
    reordered = parse(rank_pattern={"q_proj": 4, "layers.0.self_attn.q_proj": 2})
    assert reordered.rank_of("model.layers.0.self_attn.q_proj") == 4


def test_a_pattern_matches_whole_parts_of_a_path_only():
    config = parse(rank_pattern={"proj": 2, "_proj": 3})
    assert config.rank_of("model.layers.0.self_attn.q_proj") == 4


def test_rslora_divides_by_the_root():
    config = parse(r=16, lora_alpha=8, use_rslora=True)
    assert config.scaling_of("model.layers.0.self_attn.q_proj", 16) == 2.0


def test_patterns_agree_with_peft():
    from peft.utils.other import get_pattern_key

    patterns = {"layers.0.self_attn.q_proj": 1, "^q_proj": 2, r".*\.(k|v)_proj": 3, "model.layers.1.mlp.*": 5}
    config = parse(rank_pattern=patterns)
    for layer in range(3):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"):
            module = f"model.layers.{layer}.{name}"
            assert config.rank_of(module) == patterns.get(get_pattern_key(list(patterns), module), 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "mlp.up_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        {"target_modules": ["model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*\.(q|k)_proj"},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.1.self_attn.k_proj"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.0\..*"},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ],
)
def test_targets_agree_with_peft(changes):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    ours = parse(**changes)
    theirs = LoraConfig(**changes)
    modules = [
        f"model.layers.{layer}.{name}"
        for layer in range(3)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj")
    ]
    for module in [*modules, "model.embed_tokens", "lm_head"]:
        assert is_targeted(ours, module) == bool(check_target_module_exists(theirs, module)), module


def test_all_linear_means_all_but_the_head():
    config = parse(target_modules="all-linear")
    assert is_targeted(config, "model.layers.0.mlp.up_proj")
    assert not is_targeted(config, "lm_head")
    assert not is_targeted(config, "model.embed_tokens")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alora_invocation_tokens", [5]),
        ("alora_invocation_tokens", []),
        ("trainable_token_indices", [1, 2]),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2]]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"x": 1}),
        ("velora_config", {"x": 1}),
        ("megatron_config", {"x": 1}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", {"x": 1}),
        ("an_option_of_tomorrow", "on"),
    ],
)
def test_arithmetic_that_is_not_done_is_refused_by_name(option, value):
    error = refusal(json.dumps(lora_config() | {option: value}).encode())
    assert error.code.name == "UNIMPLEMENTED"
    assert option in error.message
    assert error.metadata["option"] == option


@pytest.mark.parametrize("value", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_inits_that_leave_the_base_alone_are_served(value):
    assert parse(init_lora_weights=value).rank == 4


def test_unknown_options_that_are_off_change_nothing():
    assert parse(an_option_of_tomorrow=False, another=None, third={}, fourth=[]) == parse()


def test_every_option_of_the_installed_peft_is_known_or_refused():
    from peft import LoraConfig

    written = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]).to_dict()
    written = {key: sorted(value) if isinstance(value, set) else value for key, value in written.items()}
    assert parse_peft_config(json.dumps(written).encode()).rank == 4


@pytest.mark.parametrize("peft_type", ["LOHA", "IA3", "ADALORA", None, 3])
def test_other_methods_are_refused(peft_type):
    error = refusal(json.dumps(lora_config(peft_type=peft_type)).encode())
    assert (error.code.name, error.reason) == ("UNIMPLEMENTED", "PEFT_TYPE")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is true"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": None}, "r is missing"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"lora_alpha": "16"}, 'lora_alpha is "16"'),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e+300"),
        ({"rank_pattern": [1]}, "rank_pattern is [1]"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern['q_proj'] is -1"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern['q_proj'] is null"),
        ({"rank_pattern": {"(q_proj": 1}}, "not a regular expression"),
        ({"target_modules": [1]}, "target_modules is [1]"),
        ({"target_modules": {"q": 1}}, "target_modules is"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform is"),
        ({"use_rslora": "yes"}, 'use_rslora is "yes"'),
        ({"use_dora": 1}, "use_dora is 1"),
        ({"bias": "some"}, 'bias is "some"'),
        ({"modules_to_save": "lm_head"}, 'modules_to_save is "lm_head"'),
        ({"modules_to_save": [""]}, 'modules_to_save is [""]'),
        ({"use_dora": True, "lora_bias": True}, "exclude each other"),
    ],
)
def test_malformed_options_are_named(changes, message):
    error = refusal(json.dumps(lora_config(**changes)).encode())
    assert error.code.name == "INVALID_ARGUMENT"
    assert message in error.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"r": 8, "r": 16}', "r stands there twice"),
        (b'{"r": NaN}', "NaN is not a number"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":[' + b"[]," * 500_000 + b"1]}", "objects and lists"),
        (b'{"r": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_malformed_json_is_refused(data, message):
    assert message in refusal(data).message


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(.*)*x",
        r"(a|aa){2,30}x",
        r"(a)\1",
        r"(?=a)b",
        r"(?P<x>a)(?P=x)",
        r".*.*.*.*.*.*.*x",
        "a?" * 30 + "a" * 30,
        "(.|.)" * 30 + "!",
        "(m|m)(o|o)(d|d)(e|e)(l|l)(.|.)!",
        r"(\.|[.]|\W)" * 5 + "!",
        r"(\-|-|l|la)" * 6 + "!",
        "(|a)" * 6 + "!",
        "(|(|(|(|(|(|a))))))!",
        ".*.*.*.*.*.*" + ".?" * 8 + "!",
        "x" * 5_000,
    ],
)
def test_patterns_that_could_hang_the_store_are_refused(pattern):
    error = refusal(json.dumps(lora_config(rank_pattern={pattern: 4})).encode())
    assert error.reason == "PATTERN_TOO_COMPLEX"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pattern", ["[[a]", "[a||b]", "[a--b]", "q[^&&]"])
def test_operations_on_sets_are_refused_and_warn_nobody(pattern):
    error = refusal(json.dumps(lora_config(rank_pattern={pattern: 4})).encode())
    assert (error.reason, error.metadata["option"]) == ("BAD_PATTERN", "rank_pattern")
    assert parse(rank_pattern={r"[\[a|\-b]": 4, r"\[||": 4}).rank == 4


def test_patterns_that_trainers_write_are_accepted():
    unsloth = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|ffn)\.(?:(?:q_proj|k_proj)))"
    )
    config = parse(target_modules=unsloth)
    assert is_targeted(config, "model.layers.11.self_attn.q_proj")
    assert not is_targeted(config, "model.layers.11.self_attn.v_proj")


def test_alternatives_that_exclude_one_another_are_no_burden():
    layers = "|".join(map(str, range(80)))
    modules = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    config = parse(rank_pattern={rf"^model\.layers\.({layers})\.(self_attn|mlp)\.({modules})": 4}, r=8)
    assert config.rank_of("model.layers.71.self_attn.o_proj") == 4
    assert config.rank_of("model.layers.80.self_attn.o_proj") == 8


def test_more_patterns_than_a_model_has_modules_are_refused():
    error = refusal(json.dumps(lora_config(rank_pattern={f"m{n}": 4 for n in range(5000)})).encode())
    assert (error.reason, "5000 patterns" in error.message) == ("BAD_CONFIG", True)


def test_text_that_cannot_be_encoded_is_escaped():
    refusal(json.dumps(lora_config(rank_pattern={"?\ud800": 4})).encode()).message.encode()
    data = json.dumps(lora_config(base_model_name_or_path="\ud800\n")).encode()
    assert parse_peft_config(data).base_model == "\\ud800\\n"
    error = refusal(json.dumps(lora_config() | {"\ud800": 1}).encode())
    error.message.encode()
