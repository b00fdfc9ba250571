"""Weights: every layout a checkpoint may have gives the same parameters; every fault is named."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.encoder import tiny_models as models

QWEN3 = models.GOLDEN / "qwen3"
BERT = models.GOLDEN / "bert"


def assert_equal_weights(encoder, other):
    assert encoder.digest == other.digest
    jax.tree.map(np.testing.assert_array_equal, encoder.params, other.params)


def extra(name, *shape):
    return name, np.full(shape, 0.5, np.float32)


def shard(folder, n_shards=3, key=lambda name: name):
    """Splits model.safetensors over files with an index, as save_pretrained does."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {}
    for i in range(n_shards):
        name = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        part = {k: tensors[k] for k in sorted(tensors, key=key)[i::n_shards]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


DECODER_LAYOUTS = {
    "causal LM": ("model.", [extra("lm_head.weight", 64, 32)]),
    "multimodal": ("model.language_model.", [extra("model.visual.patch.weight", 3, 5)]),
    "older multimodal": (
        "language_model.model.",
        [extra("language_model.lm_head.weight", 64, 32), extra("vision_tower.norm.bias", 3)],
    ),
    "multimodal base": ("language_model.", [extra("visual.norm.bias", 3)]),
    "SmolVLM": ("model.text_model.", [extra("model.vision_model.norm.bias", 3)]),
    "reward head": ("model.", [extra("score.weight", 1, 32)]),
    "rotary buffers": ("", [extra("layers.0.self_attn.rotary_emb.inv_freq", 4)]),
}
BERT_LAYOUTS = {
    "masked LM": (
        "bert.",
        [extra("cls.predictions.bias", 64), extra("bert.embeddings.position_ids", 1, 40)],
    ),
    "pooler": ("bert.", [extra("bert.pooler.dense.weight", 32, 32)]),
    "classifier": ("bert.", [extra("classifier.bias", 2), extra("qa_outputs.bias", 2)]),
    "base": ("", [extra("pooler.dense.bias", 32), extra("embeddings.position_ids", 1, 40)]),
}


@pytest.mark.parametrize("layout", DECODER_LAYOUTS)
@pytest.mark.parametrize("sharded", [False, True])
def test_prefix_heads_and_shards_change_nothing(tmp_path, layout, sharded):
    prefix, others = DECODER_LAYOUTS[layout]
    models.rewrite(QWEN3, tmp_path, lambda key, x: [(prefix + key, x), *others])
    if sharded:
        shard(tmp_path)
    assert_equal_weights(models.load(tmp_path), models.load(QWEN3))


@pytest.mark.parametrize("layout", BERT_LAYOUTS)
def test_bert_prefix_and_heads_change_nothing(tmp_path, layout):
    prefix, others = BERT_LAYOUTS[layout]
    models.rewrite(BERT, tmp_path, lambda key, x: [(prefix + key, x), *others])
    assert_equal_weights(models.load(tmp_path), models.load(BERT))


@pytest.mark.parametrize(
    "source, embed, head",
    [(QWEN3, "model.embed_tokens.weight", "lm_head.weight"),
     (BERT, "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")],
)  # fmt: skip
def test_a_tied_embedding_may_be_kept_under_the_name_of_the_head(tmp_path, source, embed, head):
    """As safetensors.torch.save_model does; without the tie it is missing, and nothing else is."""
    prefix = embed.split(".")[0] + "."
    models.rewrite(
        source, tmp_path, lambda key, x: [(head if prefix + key == embed else prefix + key, x)]
    )
    config = json.loads((tmp_path / "config.json").read_text())
    for tied in (True, False):
        text = json.dumps(config | {"tie_word_embeddings": tied})
        (tmp_path / "config.json").write_text(text)
        if tied:
            assert_equal_weights(models.load(tmp_path), models.load(source))
            assert models.load(tmp_path).digest == models.load(source).digest
    with pytest.raises(ValueError) as caught:
        models.load(tmp_path)
    assert str(caught.value).splitlines()[1:] == [f"  missing: {embed} (64, 32)"]


def test_experts_of_qwen3_vl_lie_either_way_round(tmp_path):
    """As on the hub, and as transformers saves the text tower alone."""
    source = models.GOLDEN / "qwen3_vl_moe"

    def turn(key, x):
        return [(key, x.swapaxes(1, 2).copy() if ".experts." in key else x)]

    models.rewrite(source, tmp_path, turn)
    turned, plain = models.load(tmp_path), models.load(source)
    jax.tree.map(np.testing.assert_array_equal, turned.params, plain.params)
    assert turned.digest != plain.digest  # It is of the tensors as they are in the file.


def test_weights_of_integers_without_scales_are_refused(tmp_path):
    def quantise(key, x):
        return [(key, (x * 50).astype(np.int8) if key.endswith("o_proj.weight") else x)]

    models.rewrite(QWEN3, tmp_path, quantise)
    with pytest.raises(ValueError, match=r"o_proj.weight' is of int8 and has no scales"):
        models.load(tmp_path)


def test_gamma_and_beta_of_tensorflow_checkpoints_are_the_norms_weight_and_bias(tmp_path):
    def rename(key, x):
        if "LayerNorm" in key:
            key = key.replace(".weight", ".gamma").replace(".bias", ".beta")
        return [(key, x)]

    models.rewrite(BERT, tmp_path, rename)
    assert_equal_weights(models.load(tmp_path), models.load(BERT))


def test_a_nested_text_config_gives_the_text_model(tmp_path):
    inner = json.loads((QWEN3 / "config.json").read_text())
    outer = {"model_type": "some_vl", "hidden_size": 999, "vision_config": {}, "text_config": inner}
    models.rewrite(QWEN3, tmp_path, lambda k, x: [(f"model.language_model.{k}", x)], outer)
    tokens_BT, lengths_B, expected = models.golden_states("qwen3")
    states = models.our_states(models.load(tmp_path), tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "phi3", "bert"])
@pytest.mark.parametrize(("piece_bytes", "n_ahead"), [(1, 1), (1000, 1), (1000, 4)])
def test_tensors_read_in_pieces_are_the_same(name, piece_bytes, n_ahead, monkeypatch):
    whole = models.load(models.GOLDEN / name)
    monkeypatch.setattr("routerjax.encoder.weights.loading.PIECE_BYTES", piece_bytes)
    tuning = dataclasses.replace(models.CPU, pieces_ahead=n_ahead)
    found = models.load(models.GOLDEN / name, tuning=tuning)
    assert_equal_weights(found, whole)
    assert found.digest == whole.digest


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_no_second_copy_of_the_weights(tmp_path, dtype):
    """Peak resident memory of another process: 570 MB of float32, the largest tensor 123 MB."""
    width, ffn, vocab, layers = 1024, 4096, 30_000, 7
    config = json.loads((models.GOLDEN / "llama/config.json").read_text())
    config |= {"hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers}
    config |= {"vocab_size": vocab, "num_attention_heads": 16, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": 64}))
    shapes = {"embed_tokens.weight": (vocab, width), "norm.weight": (width,)}
    for i in range(layers):
        projections = {"q": (width, width), "k": (512, width), "v": (512, width)}
        projections |= {"o": (width, width)}
        for name, shape in projections.items():
            shapes[f"layers.{i}.self_attn.{name}_proj.weight"] = shape
        for name, shape in {"gate": (ffn, width), "up": (ffn, width), "down": (width, ffn)}.items():
            shapes[f"layers.{i}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"layers.{i}.{name}.weight"] = (width,)
    rng = np.random.default_rng(0)
    tensors = {k: rng.standard_normal(shape, dtype=np.float32) for k, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    script = f"""
        import json, pathlib
        import jax
        from routerjax.encoder.families.config import EncoderConfig
        from routerjax.encoder.families.registry import read_config
        from routerjax.encoder.weights.checkpoint import Checkpoint
        from routerjax.encoder.weights.loading import load_weights
        from routerjax.runtime.devices import make_mesh
        from routerjax.runtime.tuning import Tuning

        def resident(name):
            status = pathlib.Path("/proc/self/status").read_text()
            return int(status.split(name + ":")[1].split()[0]) * 1024

        folder = pathlib.Path({str(tmp_path)!r})
        config = read_config(json.loads((folder / "config.json").read_text()))
        jax.numpy.zeros(1).block_until_ready()
        before = resident("VmRSS")
        dtype, precision = jax.numpy.dtype({dtype!r}), jax.lax.Precision.HIGHEST
        place = make_mesh("data:1"), Tuning.cpu()
        checkpoint = Checkpoint(folder)
        _, params, _ = load_weights(checkpoint, config, dtype, precision, *place)
        live = sum(x.nbytes for x in jax.tree.leaves(params))
        print(json.dumps([before, live, resident("VmHWM")]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
    )
    before, live, peak = json.loads(ended.stdout)
    largest = vocab * width * jnp.dtype(dtype).itemsize
    assert live == sum(x.size for x in tensors.values()) * jnp.dtype(dtype).itemsize
    assert peak - before - live < 1.2 * largest + 200e6


def test_a_single_file_goes_before_an_index(tmp_path):
    models.rewrite(QWEN3, tmp_path, lambda key, x: [(key, x)])
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone"}}')
    assert_equal_weights(models.load(tmp_path), models.load(QWEN3))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("bert", "0eacff045c85db8d762bc49aca788b27"),
        ("gpt_oss", "0ce3a0c9ff41fbe99187cf2e8cd1f64c"),
        ("mixtral", "54920867eca5e55bd935e842abffeba2"),
        ("phi3", "20d010da2538c029bbdab383418f655e"),
        ("qwen3", "807d9382ced7409796a7750c12b10860"),
        ("qwen3_next", "e35f265086a2414b834fff42dda39f7b"),
    ],
)
def test_a_checkpoints_digest_stays_what_stores_and_routers_name(name, digest):
    """Values of version 0.1.0 at 7c89359: with another one every store would be refused."""
    assert models.load(models.GOLDEN / name).digest == digest


def test_the_digest_sees_every_tensor_and_only_those_used(tmp_path):
    reference = models.load(QWEN3).digest
    seen = {reference}
    for i, changed in enumerate(load_file(QWEN3 / "model.safetensors")):
        folder = models.rewrite(
            QWEN3, tmp_path / str(i), lambda k, x, c=changed: [(k, x + 1e-3 if k == c else x)]
        )
        seen.add(models.load(folder).digest)
    assert len(seen) == 2 + i
    head = [extra("lm_head.weight", 64, 32)]
    folder = models.rewrite(QWEN3, tmp_path / "head", lambda k, x: [(f"model.{k}", x), *head])
    assert models.load(folder).digest == reference
    assert models.load(QWEN3, dtype=jnp.bfloat16).digest == reference


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_checkpoints_load_exactly_into_float32(tmp_path, dtype):
    models.rewrite(QWEN3, tmp_path, lambda key, x: [(key, x.astype(dtype))])
    encoder, reference = models.load(tmp_path), models.load(QWEN3)
    assert encoder.digest != reference.digest
    jax.tree.map(
        lambda ours, x: np.testing.assert_array_equal(ours, x.astype(dtype).astype(np.float32)),
        encoder.params,
        reference.params,
    )
    assert {x.dtype for x in jax.tree.leaves(encoder.params)} == {np.dtype(np.float32)}


def test_parameters_keep_the_dtype_asked_for():
    encoder = models.load(QWEN3, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(encoder.params)} == {jnp.dtype(jnp.bfloat16)}


def test_missing_unexpected_and_misshapen_keys_are_listed_at_once(tmp_path):
    def spoil(key, x):
        if key == "layers.1.self_attn.q_proj.weight":
            return []
        if key == "layers.2.mlp.up_proj.weight":
            return [(key, x.T.copy())]
        return [(key, x), extra("layers.0.self_attn.q_proj.bias", 32), extra("layers.3.x", 1)]

    models.rewrite(QWEN3, tmp_path, spoil)
    with pytest.raises(ValueError) as error:
        models.load(tmp_path)
    for line in (
        str(tmp_path),
        "missing: layers.1.self_attn.q_proj.weight (32, 32)",
        "misshapen: layers.2.mlp.up_proj.weight is (32, 40), expected (40, 32)",
        "unexpected: layers.0.self_attn.q_proj.bias (32,)",
        "unexpected: layers.3.x (1,)",
    ):
        assert line in str(error.value)


def test_a_checkpoint_of_another_model_gives_a_list_of_bounded_length(tmp_path):
    models.rewrite(BERT, tmp_path, lambda key, x: [(key.replace("layer.", "block."), x)])
    with pytest.raises(ValueError, match=r"missing: .*\n  \.\.\. \d+ more$") as error:
        models.load(tmp_path)
    assert len(str(error.value).splitlines()) == 42


def test_no_safetensors_names_the_folder_and_what_else_is_there(tmp_path):
    (tmp_path / "config.json").write_text((QWEN3 / "config.json").read_text())
    with pytest.raises(ValueError, match="model.safetensors is missing$"):
        models.load(tmp_path)
    for name, way in (
        ("pytorch_model.bin", "pytorch_model.bin: save the model again as safetensors"),
        ("model.fp16.safetensors", "give it the name model.safetensors"),
        ("model-00001-of-00002.safetensors", "copy its model.safetensors.index.json and all parts"),
        ("consolidated.safetensors", "its maker's own format"),
        ("adapter_config.json", "this is an adapter: merge it into its base model"),
    ):
        (tmp_path / name).write_bytes(b"never unpickled")
        with pytest.raises(ValueError, match=f"missing.*{way}"):
            models.load(tmp_path)


def test_an_adapter_beside_the_weights_is_said_to_be_left_out(tmp_path, caplog):
    models.rewrite(QWEN3, tmp_path, lambda key, x: [(key, x)])
    (tmp_path / "adapter_config.json").write_text("{}")
    models.open_checkpoint(tmp_path)
    assert "the adapter beside the weights is not applied" in caplog.text


@pytest.mark.parametrize(
    ("rename", "part"),
    [
        (lambda key: f"module.{key}", "begin with 'module.': save the model without"),
        (lambda key: key[::-1], "none of its tensors, such as 'thgiew"),
    ],
)
def test_a_checkpoint_of_other_names_says_which(tmp_path, rename, part):
    models.rewrite(QWEN3, tmp_path, lambda key, x: [(rename(key), x)])
    with pytest.raises(ValueError, match=f"describes: .*{part}"):
        models.load(tmp_path)


def test_an_absent_shard_is_named(tmp_path):
    models.rewrite(QWEN3, tmp_path, lambda key, x: [(key, x)])
    shard(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is missing"):
        models.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"metadata": {}}', '{"weight_map": 3}', '{"weight_map": {"a": 1}}']
)
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text((QWEN3 / "config.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="index.json is not a safetensors index"):
        models.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 1000, 50_000, -1])
def test_a_truncated_file_is_named_wherever_it_ends(tmp_path, kept):
    models.rewrite(QWEN3, tmp_path, lambda key, x: [(key, x)])
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        models.load(tmp_path)


@pytest.mark.parametrize("name", ["bert", "llama_rope", "qwen2"])
def test_every_way_of_saving_with_transformers_loads_alike(name, tmp_path):
    pytest.importorskip("torch")
    model = models.build(name, seed=2)
    model.save_pretrained(tmp_path / "head")
    model.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    model.base_model.save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    reference = models.load(tmp_path / "base")
    for other in ("head", "shards"):
        assert_equal_weights(models.load(tmp_path / other), reference)
