"""Damaged and absurd files never give a traceback, a hang or a flood of memory.

Valid files are mutated, byte by byte and value by value, and read as the scripts read them: what
comes is data or one of the errors that scripts say in a line. ROUTERJAX_FUZZ_SECONDS says for how
long (20 s in CI, 600 for a long run), ROUTERJAX_FUZZ_SEED where to begin. A router is mutated as it
is and as those were that had no seal, which hides what its fields do to a reader.
"""

import json
import logging
import os
import random
import resource
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import routerjax as rj
from routerjax.data.dataset import RoutingDataset
from routerjax.data.pool import read_pool
from routerjax.encoder.hub import read_config, read_tokenizer
from routerjax.encoder.load import _open
from routerjax.encoder.prompts import Prompter
from routerjax.encoder.weights.checkpoint import Checkpoint
from routerjax.routing.router import Router
from tests.data.sources.layouts import LAYOUTS
from tests.encoder import gguf_models
from tests.encoder import tiny_models as models
from tests.encoder.chat_families import families
from tests.encoder.gguf.test_load import vocabulary
from tests.encoder.test_prompts import CHATML, LLAMA3, byte_tokenizer
from tests.export import by_hand

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("ROUTERJAX_FUZZ_SECONDS", 20))
SEED = int(os.environ.get("ROUTERJAX_FUZZ_SEED", 0))
# What `run_script` says in a line; an ImportError names the extra to install.
SAID = (ValueError, OSError, FloatingPointError, RuntimeError, ImportError)
WORDS = [
    b"null", b"-1", b"0", b"1e999", b"NaN", b"true", b'""', b"[]", b"{}", b'"', b"{", b"[",
    b"\\u0000", b"\\ud800", b"\x00", b"\xff\xfe", b"9" * 400, b"," * 50, b"\n", b"\r", b"[" * 3000,
]  # fmt: skip
VALUES = [
    None, True, -1, 0, 2, 10**9, 2**63, 10**400, -0.5, 1e308, float("inf"), float("nan"), "", "x",
    "\ud800", "\x00", "a" * 70_000, [], {}, [[]], [None], {"": 1}, {"a": {"b": 1}}, [1] * 3000,
]  # fmt: skip


def of_bytes(raw, rng):
    """Some bytes more, fewer or other."""
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(raw) + 1)
        end = min(len(raw), at + rng.choice((1, 2, 8, 100)))
        kind = rng.randrange(5)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at:end] = b""
        elif kind == 2:
            raw[at:at] = raw[at:end] * rng.choice((1, 3, 1000))
        elif kind == 3:
            raw[at:end] = rng.choice(WORDS)
        else:
            del raw[at:]
    return bytes(raw)


def of_values(raw, rng):
    """One value of a JSON text gone, another or there twice."""
    lines = raw.split(b"\n")
    at = rng.randrange(len(lines))
    whole = True
    try:
        value = json.loads(raw)
    except ValueError:
        whole = False
        try:
            value = json.loads(lines[at])
        except ValueError:
            return of_bytes(raw, rng)
    inner, place = value, None
    while isinstance(inner, dict | list) and inner:
        holder = inner
        place = rng.choice([*inner] if isinstance(inner, dict) else range(len(inner)))
        inner = inner[place]
        if rng.random() < 0.3:
            break
    if place is None:
        return of_bytes(raw, rng)
    kind = rng.randrange(4)
    if kind == 0:
        del holder[place]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice((*map(str, holder), "", "x", "\ud800"))] = holder.pop(place)
    else:
        holder[place] = rng.choice(VALUES)
    text = json.dumps(value).encode()
    return text if whole else b"\n".join([*lines[:at], text, *lines[at + 1 :]])


def read_data(path):
    rj.describe(rj.read_dataset(path)).lines()


def read_encoder(folder):
    tokenizer = read_tokenizer(folder)
    prompter = Prompter(tokenizer, 64, vocab_size=400)
    prompter(["hello <s> <|im_end|> you", [{"role": "system", "content": "a"},
                                           {"role": "user", "content": "b"}]])  # fmt: skip


def read_router(folder):
    router = Router.load(folder)
    x_NC = np.ones((3, router.features.width), np.float32)
    router.predict(x_NC)
    router.costs.expected(np.full(3, 9), x_NC)


def read_unsealed_router(folder):
    read_router(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(file, folder or file to read, reader) of every kind."""
    root, result = tmp_path_factory.mktemp("fuzz"), []
    ids = tuple(f"q{i}" for i in range(6))
    y_NM = np.array([[0, 1], [1, np.nan], [1, 1], [0, 0], [1, 0], [0, 1]], np.float32)
    data = RoutingDataset(ids, tuple(f"text {i}" for i in range(6)), ("a", "b"), y_NM, ids,
                          ("x",) * 6, prices_M2=np.ones((2, 2)), output_tokens_NM=7 * y_NM,
                          input_tokens_NM=9 * y_NM, costs_NM=y_NM.astype(np.float64),
                          confidences_NM=y_NM / 2)  # fmt: skip
    for name, layout in LAYOUTS.items():
        (root / name).mkdir()
        try:
            path = (layout[0] if isinstance(layout, tuple) else layout)(data, root / name)
        except Exception:  # A layout that wants other data.
            continue
        for each in path if isinstance(path, list) else [path]:
            written = [each] if each.is_file() else each.rglob("*")
            result += [(file, path, read_data) for file in written if file.is_file()]
    pool = root / "pool.json"
    rj.write_pool(data, pool)
    result.append((pool, pool, read_pool))
    for golden in sorted(models.GOLDEN.iterdir()):
        if (golden / "config.json").is_file():
            folder = root / f"config-{golden.name}"
            folder.mkdir()
            (folder / "config.json").write_bytes((golden / "config.json").read_bytes())
            result.append((folder / "config.json", folder, read_config))
    tokenizers = {name: family.tokenizer for name, family in families().items()}
    tokenizers |= {"chatml": byte_tokenizer(CHATML), "dated": byte_tokenizer(LLAMA3)}
    for name in ("chatml", "dated", "bert", "phi3", "qwen3", "mistral", "gpt_oss"):
        folder = root / f"tokenizer-{name}"
        tokenizers[name].save_pretrained(folder)
        for file in folder.iterdir():
            result += [(file, folder, read_encoder)]
    index = root / "index"
    index.mkdir()
    weights = next(models.GOLDEN.glob("*/model.safetensors"))
    (index / "a.safetensors").write_bytes(weights.read_bytes())
    (index / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    result += [(file, index, Checkpoint) for file in index.iterdir()]
    gguf = root / "m.gguf"
    gguf_models.golden_file(gguf, "llama", "llama", write=vocabulary)
    result.append((gguf, gguf, _open))
    for name, reader in (("router", read_router), ("unsealed-router", read_unsealed_router)):
        folder = root / name
        by_hand.router(kernel=True, limits=True).save(folder)
        file = folder / "router.json"
        if reader is read_unsealed_router:
            value = json.loads(file.read_bytes())
            del value["seal"]
            file.write_text(json.dumps(value))
            result.append((file, folder, reader))
        else:
            result += [(each, folder, reader) for each in folder.rglob("*") if each.is_file()]
    return result


def attempt(file, raw, path, reader, how):
    """Reads a mutated file; whatever else than data or a said error comes, fails."""
    whole = file.read_bytes()
    file.write_bytes(raw)
    began = time.process_time()
    try:
        reader(path)
    except SAID:
        pass
    except Exception as error:
        kept = file.with_name(f"{file.name}.failing")
        kept.write_bytes(raw)
        raise AssertionError(f"{how}: {kept}: {error!r}") from error
    finally:
        file.write_bytes(whole)
    taken = time.process_time() - began
    assert taken < 5, f"{how}: {file} took {taken:.1f} s"


def test_mutated_files_are_data_or_an_error_in_a_line(files, caplog):
    caplog.set_level(logging.ERROR)
    for file, path, reader in files:
        attempt(file, file.read_bytes(), path, reader, "as it is")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends, seed, kinds = time.monotonic() + SECONDS, SEED, {}
    while time.monotonic() < ends:
        seed += 1
        rng = random.Random(seed)
        # Of each kind as often, however many files it has.
        reader = rng.choice(sorted({each.__name__ for _, _, each in files}))
        file, path, read = rng.choice([each for each in files if each[2].__name__ == reader])
        mutate = rng.choice((of_bytes, of_values))
        attempt(file, mutate(file.read_bytes(), rng), path, read, f"seed {seed}")
        kinds[reader] = kinds.get(reader, 0) + 1
        caplog.clear()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{sum(kinds.values())} mutations, {kinds}, {grown:.0f} MiB more")
    assert grown < 1024


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "query", "correct", "a", "messages", "role", "content",
                                       "group", "cost", "targets", "name", "input_price"]), inner),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(JSON, min_size=1, max_size=3))
def test_any_json_is_data_or_an_error_in_a_line(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    for name, text, reader in (
        ("a.jsonl", "\n".join(map(json.dumps, rows)), read_data),
        ("a.json", json.dumps(rows), read_data),
        ("pool.json", json.dumps(rows[0]), read_pool),
    ):
        (folder / name).write_text(text)
        try:
            reader(folder / name)
        except SAID:
            pass
