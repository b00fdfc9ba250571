"""What a checkpoint's files may say: numbers of no model, names outside the folder, odd tokens."""

import json
import logging
import math
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from routerjax.encoder.families import registry
from routerjax.encoder.gguf.config import read_gguf_config
from routerjax.encoder.hub import read_config, read_tokenizer
from routerjax.encoder.prompts import Prompter
from routerjax.encoder.weights.checkpoint import Checkpoint
from routerjax.encoder.weights.quantised import open_checkpoint
from routerjax.runtime.script import shorten_records, shortened
from tests.encoder.test_prompts import byte_tokenizer

QWEN3 = {
    "model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 40, "intermediate_size": 32,
    "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    "change, part",
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected .* to 2048, got 1000000000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a whole number from 1"),
        ({"num_attention_heads": -2}, "num_attention_heads: .* got -2"),
        ({"hidden_size": 10**4000}, "hidden_size: .* got a far larger number"),
        ({"vocab_size": "40"}, "vocab_size: .* got '40'"),
        ({"head_dim": 7.5}, "head_dim: .* got 7.5"),
        ({"sliding_window": 10**30}, "sliding_window: .* got a far larger number"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"rope_scaling": [1]}, "config.json: "),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps: expected a finite float32 number, got nan"),
        ({"rope_theta": 1e39}, "rope_theta: expected a finite float32 number, got 1e\\+39"),
    ],
)
def test_numbers_of_no_model_are_refused_before_anything_is_made_by_them(change, part, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3 | change))
    with pytest.raises(ValueError, match=part):
        read_config(tmp_path)


def test_a_config_of_no_end_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="expected the config of a Hugging Face model"):
        read_config(tmp_path)


# As the hub has Kimi K2: transformers would ask on the terminal whether to run its code.
KIMI = {
    "model_type": "kimi_k2", "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": 40, "intermediate_size": 32, "moe_intermediate_size": 8, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "routed_scaling_factor": 2.8, "q_lora_rank": None, "kv_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 128,
    "rope_theta": 50000.0, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
}  # fmt: skip


def asked(*args):
    raise AssertionError("nobody is asked whether to run a model's code")


def test_a_model_with_code_of_its_own_is_read_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", asked)
    (tmp_path / "config.json").write_text(json.dumps(KIMI))
    config = read_config(tmp_path)
    assert config == registry.read_config(KIMI) and config.family == "deepseek_v3"
    wrapper = {"model_type": "own_vl", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(wrapper | {"text_config": QWEN3}))
    with pytest.raises(ValueError, match="no model_type 'own_vl', .* is not run: .* 'qwen3'$"):
        read_config(tmp_path)


def test_a_tokenizer_of_its_own_code_needs_tokenizer_json(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", asked)
    own = {"auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}
    settings = json.dumps(own | {"tokenizer_class": "TikTokenTokenizer"})
    (tmp_path / "config.json").write_text(json.dumps(KIMI))
    (tmp_path / "tokenizer_config.json").write_text(settings)
    (tmp_path / "tiktoken.model").write_text("YQ== 0")
    with pytest.raises(ValueError, match="TikTokenTokenizer is .* own code, which is not run: put"):
        read_tokenizer(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings)
    assert read_tokenizer(tmp_path)("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]


def test_a_tokenizer_of_a_missing_package_says_how_to_do_without(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="it has no tokenizer.json; where the packages.*makes one"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "file, part",
    [
        ("adapter_config.json", "an adapter: merge it into its base model"),
        ("params.json", "a model in its maker's own format: take the copy with config.json"),
        ("modules.json", "a sentence-transformers model: name its folder"),
    ],
)
def test_a_folder_without_a_config_is_told_by_what_it_has(file, part, tmp_path):
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=f"has no config.json; it is {part}"):
        read_config(tmp_path)


def test_chat_templates_where_models_keep_them(tmp_path):
    template = "a{{ messages[0].content }}"
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "P"}))
    assert read_tokenizer(tmp_path).chat_template is None
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": template}))
    assert read_tokenizer(tmp_path).chat_template == template
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for name in ("default", "rag"):
        named = [{"name": name, "template": template}, {"name": "tool_use", "template": "t"}]
        path.write_text(json.dumps(settings | {"chat_template": named}))
        tokenizer = read_tokenizer(tmp_path)
        if name == "default":
            assert len(Prompter(tokenizer, 10)(["b"]).tokens[0]) == 2
    with pytest.raises(ValueError, match="named rag, tool_use, and none named 'default': write"):
        Prompter(tokenizer, 10)


@pytest.mark.parametrize("field", ["quantization", "quantization_config"])
def test_quantised_weights_of_mlx_are_refused_by_name(field, tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(QWEN3 | {field: {"bits": 4}}))
    with pytest.raises(ValueError, match="quant_method None, as MLX writes.*: take one of"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [10**9, 0, -1, "2"])
def test_numbers_of_a_gguf_are_bounded_too(value):
    metadata = {"general.architecture": "qwen3", "qwen3.block_count": value}
    file = types.SimpleNamespace(path="x.gguf", metadata=metadata, tensors={})
    with pytest.raises(ValueError, match="x.gguf: num_hidden_layers: expected a whole number"):
        read_gguf_config(file)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b", ""])
def test_an_index_names_files_of_its_folder_alone(name, tmp_path):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected names of files in this folder|is missing"):
        Checkpoint(tmp_path)


def test_a_number_of_a_token_is_within_reason():
    tokenizer = byte_tokenizer()
    odd = {5_000_000_000: types.SimpleNamespace(content="<odd>", special=True)}
    wrapped = types.SimpleNamespace(
        is_fast=True, added_tokens_decoder=odd, split_special_tokens=False, unk_token_id=None,
        chat_template=None, backend_tokenizer=tokenizer.backend_tokenizer,
    )  # fmt: skip
    with pytest.raises(ValueError, match="gives '<odd>' the number 5000000000, expected less"):
        Prompter(wrapped, 10)


def test_texts_of_errors_are_cut_in_the_middle():
    text = "file.json: begins " + "x" * 5000 + " do this"
    short = shortened(text)
    assert len(short) <= 1024 and short.startswith("file.json: begins x")
    assert short.endswith("x do this") and "4,002 more characters" in short
    assert shortened("short") == "short"


def test_what_transformers_says_is_cut_to_a_kilobyte(caplog):
    make = logging.getLogRecordFactory()
    try:
        shorten_records("transformers")
        for name in ("transformers.modeling", "transformers_other"):
            logging.getLogger(name).warning("keys in %s: %s", "rope", "x" * 20_000)
        logging.getLogger("transformers").warning("%d%%", 7)
    finally:
        logging.setLogRecordFactory(make)
    cut, whole, percent = caplog.messages
    assert len(cut) == 1024 and cut.startswith("keys in rope: xxx") and len(whole) > 20_000
    assert percent == "7%"


@pytest.mark.parametrize("place", ["vocab", "added_tokens"])
def test_numbers_of_tokens_are_bounded_before_arrays_are_made_by_them(place, tmp_path):
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    added = {"id": 1, "content": "<s>", "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )
    (model["vocab"] if place == "vocab" else added).update(
        {"a" if place == "vocab" else "id": 10**7}
    )
    whole = {"version": "1.0", "added_tokens": [added], "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="has the number 10000000, expected one below 10,000,000"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("second, fine", [("##\u00e9", True), ("\u00e9", False)])
def test_merges_at_which_the_library_would_end_the_process_are_refused(second, fine, tmp_path):
    vocab = {"a": 0, "##\u00e9": 1, "\u00e9": 2, "a\u00e9": 3}
    model = {"type": "BPE", "continuing_subword_prefix": "##" if fine else "x", "vocab": vocab,
             "merges": [["a", second]]}  # fmt: skip
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer",
                          "post_processor", "decoder"))  # fmt: skip
    whole = rest | {"version": "1.0", "added_tokens": [], "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    if fine:
        assert read_tokenizer(tmp_path).vocab_size == 4
    else:
        with pytest.raises(ValueError, match="cannot be loaded: the merge .* goes on without 'x'"):
            read_tokenizer(tmp_path)
