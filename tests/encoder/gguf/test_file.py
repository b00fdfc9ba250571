"""A GGUF file: what is written is read; every type as the package has it; every fault named."""

import struct

import gguf
import numpy as np
import pytest

from routerjax.encoder.gguf.file import _BLOCKS, GgufFile

VALUES = {
    "some.int": (-3, gguf.GGUFValueType.INT32),
    "some.flag": (True, gguf.GGUFValueType.BOOL),
    "some.small": (1e-6, gguf.GGUFValueType.FLOAT32),
    "some.large": (2**60, gguf.GGUFValueType.UINT64),
    "some.double": (0.1, gguf.GGUFValueType.FLOAT64),
    "some.text": ("grüße ▁", gguf.GGUFValueType.STRING),
}
ARRAYS = {"texts": ["a", "", "ü"], "numbers": [1, 2, 300], "flags": [True, False]}
MATRIX = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind) in VALUES.items():
        writer.add_key_value(key, value, kind)
    for key, value in ARRAYS.items():
        writer.add_array(key, value)
    writer.add_tensor("matrix", MATRIX)
    writer.add_tensor("half", MATRIX[0].astype(np.float16))
    finish(writer)
    return path


def test_metadata_and_plain_tensors_are_those_written(path):
    file = GgufFile(path)
    assert {key: file.metadata[key] for key in VALUES} == {k: v for k, (v, _) in VALUES.items()}
    assert {key: file.metadata[key] for key in ARRAYS} == ARRAYS
    assert file.metadata["general.architecture"] == "llama"
    assert file.tensors["matrix"].shape == (2, 3, 4)
    assert file.dtype("half") == np.float16
    np.testing.assert_array_equal(file.numbers("matrix"), MATRIX.ravel())
    np.testing.assert_array_equal(file.numbers("half", 2, 7), MATRIX.ravel()[2:7])


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A file with a tensor [3, 512] of every type, of random bytes; these bytes by type."""
    path = tmp_path_factory.mktemp("blocks") / "blocks.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    held = {}
    for name in (*_BLOCKS, "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        held[name] = rng.integers(0, 256, (3, 512 // block * size), np.uint8)
        writer.add_tensor(name, held[name], raw_dtype=kind)
    finish(writer)
    return GgufFile(path), held


@pytest.mark.parametrize("name", [*_BLOCKS, "BF16"])
def test_every_type_is_taken_apart_as_the_package_does(blocks, name):
    file, held = blocks
    kind = gguf.GGMLQuantizationType[name]
    with np.errstate(all="ignore"):  # Random bytes are infinities too.
        expected = gguf.dequantize(held[name], kind).ravel()
        numbers = file.numbers(name)
        part = file.numbers(name, 500, 1100)  # Neither end is that of a block.
    assert file.tensors[name].shape == (3, 512) and len(numbers) == 3 * 512
    np.testing.assert_array_equal(numbers.astype(np.float32), expected)
    np.testing.assert_array_equal(part.astype(np.float32), expected[500:1100])


def test_a_tensor_longer_than_is_taken_apart_at_a_time(blocks, monkeypatch):
    file, _ = blocks
    whole = file.numbers("Q8_0", 40, 1000)
    monkeypatch.setattr("routerjax.encoder.gguf.file._BLOCK_NUMBERS", 64)
    np.testing.assert_array_equal(file.numbers("Q8_0", 40, 1000), whole)


@pytest.fixture
def split(tmp_path):
    """The parts of a split file of five tensors."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    writer.add_context_length(7)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((2, 2), i, np.float32))
    finish(writer)
    return sorted(tmp_path.glob("*.gguf"))


def test_parts_are_joined_whichever_is_named(split):
    for part in split:
        file = GgufFile(part)
        assert file.path == split[0] and file.metadata["llama.context_length"] == 7
        assert [file.numbers(f"t{i}")[0] for i in range(5)] == [0, 1, 2, 3, 4]


def test_faults_of_parts_are_named(split, tmp_path):
    split[1].rename(tmp_path / "away.gguf")
    with pytest.raises(ValueError, match="one of 3 parts, of which m-00002-of-00003.gguf is miss"):
        GgufFile(split[0])
    split[1].write_bytes(split[2].read_bytes())
    with pytest.raises(ValueError, match="says that it is part 3 of 3, expected part 2 of 3"):
        GgufFile(split[0])
    with pytest.raises(ValueError, match="away.gguf says that it is part 2 of 3, expected part 1"):
        GgufFile(tmp_path / "away.gguf")


def test_faults_of_a_file_are_named(path, tmp_path):
    whole, bad = path.read_bytes(), tmp_path / "bad.gguf"
    faults = {
        b"": "ends within its header",
        b"PK\3\4" + whole[4:]: "begins with b'PK",
        whole[:60]: "ends within its header",
        whole[:-40]: r"its tensor '\w+' goes to",
        whole[:4] + struct.pack("<I", 1) + whole[8:]: "of version 1, expected",
        whole[:4] + struct.pack(">I", 3) + whole[8:]: "big-endian",
        # More tensors and values than any model has, and a text longer than the file.
        whole[:8] + struct.pack("<Q", 2**60) + whole[16:]: "has 1152921504606846976 tensors, exp",
        whole[:16] + struct.pack("<Q", 2**60) + whole[24:]: "is not a whole GGUF file",
        whole[:24] + struct.pack("<Q", 2**60) + whole[32:]: "ends within its header",
    }
    for held, message in faults.items():
        bad.write_bytes(held)
        with pytest.raises(ValueError, match=message) as error:
            GgufFile(bad)
        assert str(bad) in str(error.value) and "copy it again" in str(error.value)


def header(values=(), tensors=()):
    """A file of the metadata (key, kind, bytes) and the tensors (name, shape, kind, offset)."""
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, kind, value in values:
        raw += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        raw += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        raw += struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)
    return raw + bytes(-len(raw) % 32) + bytes(4096)


NESTED = struct.pack("<IQ", 9, 1) * 10**4
ALIGNED = [("general.alignment", 4, bytes(4))]
F32, Q8_0 = 0, 8


@pytest.mark.parametrize(
    "held, message",
    [
        (header([("a", 9, NESTED)]), "an array of arrays"),
        (header([("a", 9, struct.pack("<IQ", 99, 0))]), "a value of the unknown type 99"),
        (header([("a", 9, struct.pack("<IQ", 8, 2**60))]), "has 1152921504606846976 values in an"),
        (header([("a", 4, bytes(4))] * 2), "the key 'a' is there twice"),
        (header(ALIGNED), "general.alignment is 0, expected a power of two"),
        (header([], [("t", (2,), F32, 0)] * 2), "the tensor 't' is there twice"),
        (header([], [("t", (1,) * 9, F32, 0)]), "the tensor 't' has 9 axes"),
        (header([], [("t", (2**32, 2**32), F32, 0)]), "its tensor 't' goes to 73786976294838206"),
        (header([], [("t", (2,), F32, 2**64 - 1)]), "its tensor 't' goes to 1844674407370955"),
        (
            header([], [("t", (33, 4), Q8_0, 0)]),
            "has rows of 33 numbers, expected a multiple of 32",
        ),
        (header([], [("t", (9,), F32, 0), ("u", (2,), F32, 32)]), "'t' and 'u' lie in the same by"),
        (header([("split.no", 8, bytes(8))]), "says that it is part '' of 1, expected part 1"),
    ],
)
def test_a_header_of_no_model_is_refused_before_it_fills_memory(held, message, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(held)
    with pytest.raises(ValueError, match=f"bad.gguf.*{message}"):
        GgufFile(tmp_path / "bad.gguf")


def test_a_type_that_is_not_supported_is_refused_when_it_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    raw = np.zeros((2, 36), np.uint8)
    writer.add_tensor("odd", raw, raw_dtype=gguf.GGMLQuantizationType.NVFP4)
    writer.add_tensor("fine", np.ones(3, np.float32))
    finish(writer)
    file = GgufFile(tmp_path / "x.gguf")
    assert file.numbers("fine").tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="'odd' is NVFP4, of which routerjax reads only F32, F16"):
        file.numbers("odd")


def test_a_file_cut_after_it_was_opened_is_an_error(path, tmp_path):
    copy = tmp_path / "x.gguf"
    copy.write_bytes(path.read_bytes())
    file = GgufFile(copy)
    copy.write_bytes(copy.read_bytes()[:-60])
    with pytest.raises(ValueError, match="cannot read the tensor 'half': the file ends within it"):
        file.numbers("half")
