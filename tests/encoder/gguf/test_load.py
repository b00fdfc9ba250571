"""An encoder from a GGUF: by file, folder or hub id; the real SmolLM2."""

import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.gguf.file import GgufFile
from routerjax.encoder.hub import locate
from routerjax.encoder.load import _open
from tests.encoder import gguf_models
from tests.encoder import tiny_models as models

TEMPLATE = "<s>{{ messages[0].content }}{% if add_generation_prompt %}!{% endif %}"


def vocabulary(writer):
    """A byte-level tokenizer with one merge and one mark."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "\u0120a", "<s>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["\u0120 a"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds one GGUF: a Llama of 3 blocks, 32 wide, of 258 tokens."""
    folder = tmp_path_factory.mktemp("one")
    source, target = models.GOLDEN / "llama", tmp_path_factory.mktemp("wide")
    table = np.random.default_rng(0).standard_normal((258, 32)).astype(np.float32)
    models.rewrite(source, target, lambda k, x: [(k, table if "embed" in k else x)])
    tensors = {}
    for name, held in GgufFile(
        gguf_models.golden_file(target / "x.gguf", "llama", "llama")
    ).tensors.items():
        tensors[name] = GgufFile(target / "x.gguf").numbers(name).reshape(held.shape)
    tensors["token_embd.weight"] = table
    gguf_models.golden_file(
        folder / "m.gguf", "llama", "llama", {"vocab_size": 258}, tensors=tensors, write=vocabulary
    )
    return folder


def test_a_panic_of_the_tokenizers_library_is_an_error(tmp_path):
    def write(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(["a", "b"])
        writer.add_token_merges(["a b"])  # There is no "ab".

    path = gguf_models.golden_file(tmp_path / "m.gguf", "llama", "llama", write=write)
    with pytest.raises(ValueError, match="m.gguf: the tokenizer fails: range end index"):
        _open(path)


@pytest.fixture(scope="module")
def encoder(folder):
    return Encoder.from_pretrained(folder / "m.gguf", max_tokens=64)


def test_an_encoder_is_loaded_by_file_by_folder_and_by_name(folder, encoder):
    file = folder / "m.gguf"
    same = [
        Encoder.from_pretrained(folder, max_tokens=64),
        Encoder.from_pretrained(str(folder), gguf_file="m.gguf", max_tokens=64),
        Encoder.from_identity(encoder.identity),
    ]
    h_NLPD = encoder.capture(["a b c", "of 3 blocks"])
    for other in same:
        ours, theirs = (dict(each.identity) for each in (encoder, other))
        assert ours.pop("encoder_id") == str(file)
        assert theirs.pop("encoder_id") in (str(file), str(folder))
        assert ours == theirs
        np.testing.assert_array_equal(other.capture(["a b c", "of 3 blocks"]), h_NLPD)
    prompt = encoder.prompter(["x a"]).tokens[0].tolist()
    assert prompt == [257, *encoder.prompter.tokenizer("x a!")["input_ids"]]


def test_other_weights_are_another_identity(folder, encoder, tmp_path):
    held = (folder / "m.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(held[:-50] + bytes([held[-50] ^ 1]) + held[-49:])
    other = Encoder.from_pretrained(path, max_tokens=64).identity
    differ = {name for name, value in encoder.identity.items() if other[name] != value}
    assert differ == {"encoder_id", "weights_digest"}


def test_which_file_of_a_folder(folder, tmp_path):
    shutil.copy(folder / "m.gguf", tmp_path / "m.gguf")
    (tmp_path / "mmproj-m.gguf").touch()  # The tower of another modality.
    assert locate(str(tmp_path), None) == (tmp_path / "m.gguf", None)
    for number in (1, 2, 3):
        (tmp_path / f"s-0000{number}-of-00003.gguf").touch()
    with pytest.raises(ValueError, match="has 2 GGUF files, m.gguf, s-00001-of-00003.gguf: name"):
        locate(str(tmp_path), None)
    (tmp_path / "m.gguf").unlink()
    assert locate(str(tmp_path), None) == (tmp_path / "s-00001-of-00003.gguf", None)
    (tmp_path / "model.safetensors").touch()
    assert locate(str(tmp_path), None) == (tmp_path, None)
    with pytest.raises(ValueError, match="revision: .* is a local file, which has none"):
        locate(str(tmp_path / "s-00002-of-00003.gguf"), "main")


def test_a_file_of_a_hub_repository(folder, tmp_path, monkeypatch):
    asked = []

    def download(repository, revision, allow_patterns, ignore_patterns):
        asked.append((repository, revision, allow_patterns))
        # Mistral's repositories have the weights twice.
        assert ("consolidated*" in (ignore_patterns or ())) == (repository == "whole/model")
        (tmp_path / "abc123").mkdir(exist_ok=True)
        shutil.copy(folder / "m.gguf", tmp_path / "abc123/m.gguf")
        return str(tmp_path / "abc123")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("some/model/m.gguf", "v1") == (tmp_path / "abc123/m.gguf", "abc123")
    with pytest.raises(OSError, match="the Hugging Face hub has no q/n-00002-of-00003.gguf in"):
        locate("some/model/q/n-00002-of-00003.gguf", None)
    assert asked == [
        ("some/model", "v1", ["m.gguf"]),
        ("some/model", None, ["q/n-*-of-00003.gguf"]),
    ]
    with pytest.raises(ValueError, match="no config.json .* name one: whole/model/NAME.gguf"):
        locate("whole/model", None)
    for source in ("m.gguf", "some/m.gguf", "./some/model/m.gguf", "/no/such/m.gguf"):
        with pytest.raises(ValueError, match="and it is not a hub id either"):
            locate(source, None)


def test_without_the_package_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"m.gguf: a GGUF file takes the gguf package: pip inst"):
        Encoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def real(smollm2):
    return Encoder.from_pretrained(smollm2, compute_dtype="float32")


# Made by the model's own tokenizer.json, which splits digits singly.
SMOLLM2_IDS = {
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}


def test_smollm2_is_whole(real):
    c = real.config
    assert (c.family, c.n_layers, c.width, c.n_heads, c.n_kv_heads) == ("llama", 30, 576, 9, 3)
    assert real.n_parameters == 134_515_008
    assert real.identity["weights_digest"] == "497c6ffae8e6cf146b0ec577e30d7132"
    tokenizer = real.prompter.tokenizer
    assert {text: tokenizer(text)["input_ids"] for text in SMOLLM2_IDS} == SMOLLM2_IDS
    prompts = real.prompter(["Is 2+2=4?"])
    tokens, (start, end) = prompts.tokens[0], prompts.spans_N2[0]
    assert tokens.tolist() == models.SMOLLM2_TOKENS
    assert tokenizer.decode(tokens) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nIs 2+2=4?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(tokens[start:end]) == "Is 2+2=4?"


def errors_of(real, states_SPD, layers_S):
    """The largest error of a state of SmolLM2's prompt over its largest value."""
    h_LPD = real.capture(["Is 2+2=4?"], "all", ("last", "mean"))[0]
    assert h_LPD.shape == (31, 2, 576)
    largest = np.abs(states_SPD).max(axis=-1, keepdims=True)
    return (np.abs(h_LPD[layers_S] - states_SPD) / largest).max()


def test_states_of_smollm2_equal_the_golden_ones(real):
    held = load_file(models.GOLDEN / "smollm2/states.safetensors")
    assert held["tokens"].tolist() == models.SMOLLM2_TOKENS
    assert errors_of(real, held["states"], held["layers"]) < 1e-4


@pytest.mark.slow
def test_every_state_of_smollm2_equals_that_of_transformers_own_loading(real, smollm2):
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        found = model(torch.tensor([models.SMOLLM2_TOKENS]), output_hidden_states=True)
    states_LTD = np.stack([state[0].numpy() for state in found.hidden_states])
    expected = np.stack([states_LTD[:, -1], states_LTD.mean(axis=1)], axis=1)
    assert errors_of(real, expected, np.arange(31)) < 1e-4
