"""Encoder: what users call; its errors, its independence of company, two processes."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from routerjax.encoder import batches, hub
from routerjax.encoder.capture import capture
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.precision import dtype_errors
from routerjax.encoder.selection import Selection
from routerjax.runtime import resume
from routerjax.runtime.devices import make_mesh
from routerjax.runtime.tuning import Tuning


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder):
    return Encoder.from_pretrained(tiny_encoder_folder)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_every_query_has_its_states_whoever_comes_with_it(encoder, tiny_data):
    queries = tiny_data.queries[:100]
    together = encoder.capture(queries)
    assert together.shape == (100, 4, 2, 32) and together.dtype == np.float32
    close(encoder.capture(queries[::-1])[::-1], together)
    close(np.concatenate([encoder.capture([query]) for query in queries[:5]]), together[:5])


def test_random_weights_are_another_encoder_of_the_same_shape(encoder):
    random, again, other = (encoder.with_random_weights(seed) for seed in (0, 0, 1))
    queries = ["one", "a longer query of several words"]
    h, h_again, h_other = (e.capture(queries) for e in (random, again, other))
    np.testing.assert_array_equal(h, h_again)
    assert np.isfinite(h).all() and h.shape == encoder.capture(queries).shape
    for different in (h_other, encoder.capture(queries)):
        assert np.abs(h - different).max() > 0.01 * np.abs(h).max()
    digests = {e.identity["weights_digest"] for e in (encoder, random, other)}
    assert len(digests) == 3
    same = {k: v for k, v in encoder.identity.items() if k != "weights_digest"}
    assert same.items() <= random.identity.items()


def test_layers_and_poolings_are_picked(encoder):
    whole = encoder.capture(["abc"], poolings=("last", "mean", "max"))
    close(encoder.capture(["abc"], layers=[-1, 1], poolings=("max",)), whole[:, [1, 3], 2:])
    assert encoder.capture([]).shape == (0, 4, 2, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [4]}, r"hidden states 0 \(embeddings\) to 3"),
        ({"layers": []}, "got none"),
        ({"layers": [1, -3]}, "each hidden state counts once"),
        ({"layers": "last"}, "'all' or a list"),
        ({"poolings": ("median",)}, "got 'median'"),
        ({"poolings": ("mean", "mean")}, "different ones"),
        ({"queries": "abc"}, "one text; write"),
        ({"queries": ["abc", " "]}, r"queries\[1\]"),
    ],
)
def test_wrong_arguments_are_named(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        encoder.capture(**{"queries": ["abc"]} | arguments)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 269060552\n"


def test_a_panic_of_the_tokenizers_package_is_an_error_like_any(tiny_encoder_folder, monkeypatch):
    class PanicException(BaseException):
        """As the package raises it for some damaged files."""

    def refusing(error):
        def from_pretrained(folder, trust_remote_code, mistral_format):
            assert not trust_remote_code and not mistral_format
            raise error

        monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)

    refusing(PanicException("range end index out of range"))
    with pytest.raises(ValueError, match="tokenizer cannot be loaded: range end index"):
        hub.read_tokenizer(tiny_encoder_folder)
    refusing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        hub.read_tokenizer(tiny_encoder_folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", r"config\.json: expected a JSON object"),
        ("config.json", "null", r"config\.json: expected a JSON object"),
        ("tokenizer.json", "{}", "cannot be loaded: KeyError.*: copy its tokenizer files again"),
        ("tokenizer.json", "[]", "its tokenizer cannot be loaded"),
        ("tokenizer_config.json", "[]", "its tokenizer cannot be loaded"),
        ("chat_template.json", "[]", "its tokenizer cannot be loaded"),
        ("model.safetensors", LFS, r"model\.safetensors is a Git LFS pointer"),
        ("tokenizer.json", LFS, r"tokenizer\.json is a Git LFS pointer"),
        ("config.json", "\n<!DOCTYPE html><html>", r"config\.json is an HTML page"),
        ("chat_template.jinja", "{% if", "chat template does not render"),
        # transformers would make one that knows no word, and all states would be alike.
        ("tokenizer.json", None, r"has no tokenizer, expected one of tokenizer\.json, vocab\.txt"),
    ],
)
def test_a_damaged_folder_is_refused_by_its_name(
    tiny_encoder_folder, tmp_path, name, content, message
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder_folder, folder)
    if name == "chat_template.json":
        (folder / "chat_template.jinja").unlink()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Encoder.from_pretrained(folder)
    assert str(folder) in str(error.value)


def test_a_link_to_nothing_is_a_missing_file(tiny_encoder_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder_folder, folder)
    (folder / "notes.json").mkdir()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        Encoder.from_pretrained(folder)


def test_a_chat_template_of_a_multimodal_model_is_read(tiny_encoder_folder, encoder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder_folder, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    identity = Encoder.from_pretrained(folder).identity
    assert identity["template_digest"] == encoder.identity["template_digest"] is not None


def test_a_model_without_heads_is_refused(tiny_encoder_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_attention_heads": 0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="num_attention_heads: expected a whole number from 1"):
        Encoder.from_pretrained(folder)


def test_a_large_model_takes_smaller_batches_and_more_shapes(encoder, monkeypatch):
    assert (encoder.default_batch_tokens, encoder.worth_tokens) == (1024, 1024)
    monkeypatch.setattr(type(encoder), "flops", lambda self, n, deepest: 2e8 * n)
    large = encoder.with_random_weights()  # Which has not counted yet.
    assert (large.default_batch_tokens, large.worth_tokens) == (512, 100)


@pytest.mark.parametrize(
    ("flops", "tokens", "worth"),
    [(4e7, 32768, 625_000), (9.1e8, 32768, 27_472), (1.5e10, 2048, 1666), (1e12, 2048, 25)],
)
def test_an_accelerator_takes_batches_of_as_much_work(flops, tokens, worth):
    assert batches.default_batch_tokens(Tuning.gpu(), flops) == tokens
    # What lies between a block's products should stay in a TPU's inner memory.
    assert batches.default_batch_tokens(Tuning.tpu(), flops) == min(tokens, 4096)
    assert batches.worth_tokens(Tuning.gpu(), flops) == worth


def test_max_tokens_stops_at_the_models_positions(encoder):
    assert encoder.max_tokens == 96
    long = encoder.prompter(["a" * 500])
    assert long.lengths_N[0] == 96 and long.truncated_N[0]
    assert np.isfinite(encoder.capture(["a" * 500])).all()


def test_bfloat16_is_near_and_says_so(tiny_encoder_folder, encoder, tiny_data):
    half = Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="bfloat16")
    exact, rough = (e.capture(tiny_data.queries[:20]) for e in (encoder, half))
    assert rough.dtype == np.float32
    assert 1e-6 < np.abs(exact - rough).max() / np.abs(exact).max() < 0.05
    assert half.identity["compute_dtype"] == "bfloat16"
    assert half.identity["weights_digest"] == encoder.identity["weights_digest"]


def test_the_error_of_each_hidden_state_is_told(
    tiny_encoder_folder, encoder, tiny_data, monkeypatch
):
    half = Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="bfloat16")
    queries = tiny_data.queries[:20]
    found = dtype_errors(half, queries, ("mean",))
    exact_NLPD, rough_NLPD = (e.capture(queries, poolings=("mean",)) for e in (encoder, half))
    expected_L = [
        np.linalg.norm(rough_NLPD[:, i] - exact_NLPD[:, i]) / np.linalg.norm(exact_NLPD[:, i])
        for i in range(4)
    ]
    np.testing.assert_allclose(found.pop("relative_error"), expected_L, rtol=1e-3)
    assert 1e-4 < expected_L[0] < 2**-8 and max(expected_L) < 0.05
    assert found == {
        "encoder_id": str(tiny_encoder_folder),
        "compute_dtype": "bfloat16",
        "n_queries": 20,
        "poolings": ["mean"],
    }
    assert dtype_errors(encoder, queries) is None
    monkeypatch.setattr("routerjax.encoder.precision.MOST_BYTES", 4 * half.n_parameters - 1)
    assert dtype_errors(half, queries) is None
    other = half.with_random_weights()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="other weights lie at"):
        dtype_errors(other, queries)
    with pytest.raises(ValueError, match="a few texts, got none"):
        dtype_errors(half, [])


def test_a_few_tokens_are_read_block_by_block_and_many_from_the_stack(encoder, monkeypatch):
    given = []
    monkeypatch.setattr(
        "routerjax.encoder.prefill.capture",
        lambda *args, **options: given.append(options["blocks"]) or capture(*args, **options),
    )
    layers = tuple(range(encoder.n_states))
    of_rows = {}
    for rows in (1, 40):
        tokens_BT = np.tile(np.arange(16, dtype=np.int32)[None], (rows, 1))
        lengths_B, spans_B2 = np.full(rows, 16, np.int32), np.tile([[0, 16]], (rows, 1))
        batch = tokens_BT, lengths_B, spans_B2.astype(np.int32)
        of_rows[rows] = np.asarray(encoder.forward(batch, Selection(layers, ("mean",))))
    few, many = given
    assert len(few) == encoder.config.n_layers and many is None
    close(of_rows[1], of_rows[40][:, :, :1])


def test_the_first_call_may_be_inside_a_trace(tiny_encoder_folder):
    """The weights that a first call lays out block by block are kept, and must not be tracers."""
    fresh = Encoder.from_pretrained(tiny_encoder_folder)
    batch = np.ones((1, 16), np.int32), np.array([16], np.int32), np.array([[0, 16]], np.int32)
    shape = jax.eval_shape(lambda: fresh.forward(batch, Selection((1, 2), ("mean",))))
    h_LPBD = np.asarray(fresh.forward(batch, Selection((1, 2), ("mean",))))
    assert shape.shape == h_LPBD.shape and np.isfinite(h_LPBD).all()


def test_a_mesh_of_eight_gives_the_same(tiny_encoder_folder, encoder, tiny_data):
    spread = Encoder.from_pretrained(tiny_encoder_folder, mesh=make_mesh("data:8"))
    queries = tiny_data.queries[:30]
    close(spread.capture(queries), encoder.capture(queries))


def test_what_is_no_encoder_is_refused(tiny_encoder_folder, tmp_path):
    with pytest.raises(ValueError, match="no folder /nowhere/at/all"):
        Encoder.from_pretrained("/nowhere/at/all")
    with pytest.raises(ValueError, match=r"config\.json: expected the config"):
        Encoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a file, and no GGUF file: name a folder with config"):
        Encoder.from_pretrained(tiny_encoder_folder / "model.safetensors")
    with pytest.raises(ValueError, match="local folder, which has none"):
        Encoder.from_pretrained(tiny_encoder_folder, revision="main")
    with pytest.raises(ValueError, match="compute_dtype"):
        Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="int8")
    other = tmp_path / "other"
    shutil.copytree(tiny_encoder_folder, other)
    (other / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ValueError, match=r"model_type is 'mamba'; supported are bert, .*llama, "):
        Encoder.from_pretrained(other)


def test_an_unreachable_hub_is_an_error_that_names_the_model():
    with pytest.raises(OSError, match="no folder 'nobody/nothing'"):
        Encoder.from_pretrained("nobody/nothing")


def test_who_is_asked_to_stop_compiles_no_more(tiny_encoder_folder):
    encoder = Encoder.from_pretrained(tiny_encoder_folder)
    with resume.stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        encoder.compile([(2, 16), (4, 16)], Selection((0,), ("last",)))
    assert not encoder._prefill._programs
    encoder.compile([(2, 16)], Selection((0,), ("last",)))
    assert len(encoder._prefill._programs) == 1
