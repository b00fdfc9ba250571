"""What all tests share: eight CPU devices, strict rank promotion, data and stores, real weights."""

import gc
import os
import pathlib
import shutil

# Before JAX starts its backend: sharded code is tested on eight devices, plain code uses the first.
# Tests compile far more than they compute: LLVM should not optimise, loops are emitted as LLVM IR
# directly (through MLIR a program takes twice as long) and as one module, and every compiled
# program is kept for the other workers and for the next run. With
# XLA_FLAGS=--xla_force_host_platform_device_count=8 the tests run what users run; in CI the
# quickstart and the guard of the benchmark do.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache/xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A worker for each core: threads of BLAS would wait for each other at full load.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import types

import hypothesis
import jax
import numpy as np
import pytest

from routerjax.runtime.tuning import Tuning

jax.config.update("jax_numpy_rank_promotion", "raise")

# Imports leave no garbage: looking for it takes a third of the time of collecting the tests.
gc.disable()

# Property tests take the same examples everywhere and may be slow on a busy machine.
hypothesis.settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("steady")

ROOT = pathlib.Path(__file__).parents[1]


def pytest_configure():
    """A worker, and what it starts, keeps to a core: XLA's threads would wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) <= len(cores):
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw"))]})


def pytest_collection_finish():
    gc.freeze()  # What is there stays, and no collection looks at it.
    gc.enable()
    gc.set_threshold(50_000, 20, 100)  # Tracing makes many objects, of which few are garbage.


# A process may have 65,530 memory mappings, of which each compiled program holds some: XLA crashes
# beyond.
MOST_MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def _few_mappings():
    """Drops the compiled programs after a module where the process holds many mappings.

    What a module leaves, mostly JAX's caches, is left out of further collections: each would look
    at gigabytes.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        gc.unfreeze()
        jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture
def tune(monkeypatch):
    """A function that changes, for one test, what the devices here are tuned to."""

    def change(**fields) -> None:
        tuning = dataclasses.replace(Tuning.cpu(), **fields)
        monkeypatch.setattr(Tuning, "cpu", lambda: tuning)

    return change


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real outcomes beside the checkout; it is not part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return folder


@pytest.fixture(scope="session")
def minilm() -> pathlib.Path:
    """The folder of all-MiniLM-L6-v2, from the wheel that requirements-minilm.txt pins."""
    return _from_wheel("minilm")


@pytest.fixture(scope="session")
def smollm2() -> pathlib.Path:
    """The GGUF file of SmolLM2-135M-Instruct, from the wheel that requirements-smollm2.txt pins."""
    return _from_wheel("smollm2")


def _from_wheel(name: str) -> pathlib.Path:
    from experiments import options

    try:
        return pathlib.Path(options.find_encoder(name))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory) -> pathlib.Path:
    """A Qwen3 of 3 blocks, 32 wide, with a chat template over single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-qwen3")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(ROOT / "tests/encoder/golden/qwen3" / name, folder / name)
    letters = ["<unk>", "<user>", "<assistant>", *"abcdefghijklmnopqrstuvwxyz0123456789 ?.,+-*/="]
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<user>{{ m.content }}{% endfor %}{% if brief %} - brief{% endif %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data():
    """3,000 queries of 6 to 13 or 46 to 53 letters, outcomes of three targets, a tenth missing.

    Lengths of two classes, so that a job compiles two shapes, not eight.
    """
    from routerjax.data.dataset import RoutingDataset

    rng = np.random.default_rng(0)
    n = 3000
    lengths = rng.integers(6, 14, n) + 40 * rng.integers(0, 2, n)
    queries = tuple("".join(rng.choice(list("abcdefghij +"), k)) + "?" for k in lengths)
    # Long queries are hard, and 'a's help the second target: both can be read off the states.
    ease_NM = np.stack(
        [30 - lengths, 4 * np.array([q.count("a") for q in queries]) - 12, 20 - 0.5 * lengths], 1
    )
    y_NM = (rng.random((n, 3)) < 1 / (1 + np.exp(-ease_NM / 8))).astype(np.float32)
    y_NM[rng.random((n, 3)) < 0.1] = np.nan
    ids = tuple(f"q{i:04d}" for i in rng.permutation(n))
    return RoutingDataset(
        ids=ids,
        queries=queries,
        targets=("cheap", "middle", "dear"),
        y_NM=y_NM,
        groups=ids,
        datasets=tuple("short" if k < 30 else "long" for k in lengths),
        prices_M2=np.array([[0.1, 0.2], [0.5, 1.0], [3.0, 9.0]]),
    )


class FakeStore:
    """The read side of ActivationStore over an array, with blocks of any size.

    `reads` records (block, layer, pooling) of every chunk that was asked for.
    """

    def __init__(self, h_NLPD, ids, layers, poolings, block_rows):
        self._h_LPND = np.ascontiguousarray(h_NLPD.transpose(1, 2, 0, 3)).astype(np.float32)
        self.ids, self.layers, self.poolings = tuple(ids), tuple(layers), tuple(poolings)
        self.width = h_NLPD.shape[3]
        self.block_rows = block_rows
        self.n_blocks = -(-len(self.ids) // block_rows)
        self.reads = []
        self.identity = {"store_dtype": "float16"}

    def block_slice(self, block):
        start = block * self.block_rows
        return slice(start, min(start + self.block_rows, len(self.ids)))

    def rows_of(self, ids):
        missing = [name for name in ids if name not in self.ids]
        if missing:
            raise ValueError(f"{missing[0]!r} is not in the store")
        return np.array([self.ids.index(name) for name in ids], np.int64)

    def blocks(self, layers=None, poolings=None, which=None):
        layers = self.layers if layers is None else tuple(layers)
        poolings = self.poolings if poolings is None else tuple(poolings)
        l_index = [self.layers.index(layer) for layer in layers]
        p_index = [self.poolings.index(name) for name in poolings]
        for block in range(self.n_blocks) if which is None else which:
            self.reads += [(block, layer, name) for layer in layers for name in poolings]
            at = self.block_slice(block)
            yield at, self._h_LPND[np.ix_(l_index, p_index)][:, :, at]


def _make_data(ids, y_NM, targets=None):
    y_NM = np.asarray(y_NM, np.float32)
    targets = tuple(targets or (f"t{m}" for m in range(y_NM.shape[1])))
    correct_NM = np.where(np.isnan(y_NM), np.nan, y_NM >= 0.5).astype(np.float32)
    return types.SimpleNamespace(
        ids=tuple(ids), targets=targets, y_NM=y_NM, correct_NM=correct_NM, n_queries=len(ids)
    )


@pytest.fixture(scope="session")
def fake_data():
    """make(ids, y_NM, targets=None): what features and probes read of a RoutingDataset."""
    return _make_data


@pytest.fixture(scope="session")
def fake_store():
    """make(h_NLPD, ids=None, block_rows=32, seed=0, layers=None, poolings=None) -> FakeStore.

    Row n of h_NLPD belongs to ids[n]; the store keeps its rows in another, shuffled order.
    """

    def make(h_NLPD, ids=None, block_rows=32, seed=0, layers=None, poolings=None):
        n_rows, n_layers, n_poolings, _ = h_NLPD.shape
        ids = [f"q{n}" for n in range(n_rows)] if ids is None else list(ids)
        layers = range(n_layers) if layers is None else layers
        poolings = ("last", "mean", "first", "max")[:n_poolings] if poolings is None else poolings
        order = np.random.default_rng(seed).permutation(n_rows)
        return FakeStore(h_NLPD[order], [ids[n] for n in order], layers, poolings, block_rows)

    return make


@pytest.fixture(scope="session")
def toy():
    """Five layers of two poolings, 16 wide, 200 rows, three targets with gaps in their outcomes.

    Layer 0 of `last` is constant up to float noise; layer 3 separates the classes best.
    """
    rng = np.random.default_rng(7)
    n_rows, n_layers, width = 200, 5, 16
    ids = [f"q{n}" for n in range(n_rows)]
    y_NM = (rng.random((n_rows, 3)) < np.array([0.5, 0.3, 0.8])).astype(np.float32)
    mix = rng.normal(size=(n_layers, 2, width, width)) / 4
    h_NLPD = np.einsum("nlpd,lpde->nlpe", rng.normal(size=(n_rows, n_layers, 2, width)), mix)
    strength_L = np.array([0.1, 0.3, 0.6, 2.0, 0.9])
    direction_LPMD = rng.normal(size=(n_layers, 2, 3, width)) / 4
    h_NLPD += np.einsum("nm,l,lpmd->nlpd", y_NM - 0.5, strength_L, direction_LPMD)
    h_NLPD += rng.normal(size=(n_layers, 2, width))
    h_NLPD[:, 0, 0] = rng.normal(size=width) * (1 + 1e-6 * rng.normal(size=(n_rows, width)))
    y_NM[rng.random((n_rows, 3)) < 0.15] = np.nan
    return types.SimpleNamespace(
        ids=ids, y_NM=y_NM, h_NLPD=h_NLPD.astype(np.float32), data=_make_data(ids, y_NM)
    )


@pytest.fixture(scope="session")
def make_pool():
    """A function that makes (data, p_NM, cost_NM) of n queries on m targets.

    True P(correct) is known, and the predictions know part of it.
    """
    from routerjax.data.dataset import RoutingDataset

    def make(n=600, m=4, missing=0.0, fractional=False, seed=0):
        rng = np.random.default_rng(seed)
        dataset_N = rng.integers(0, 5, n)
        known_NM, hidden_NM = rng.normal(size=(2, n, m))
        logit_NM = np.linspace(-0.5, 1.2, m) + rng.normal(size=5)[dataset_N][:, None] + known_NM
        true_NM = 1 / (1 + np.exp(-logit_NM - 0.5 * hidden_NM))
        y_NM = (rng.random((n, m)) < true_NM).astype(np.float32)
        if fractional:
            y_NM[rng.random((n, m)) < 0.1] = 0.6
        y_NM[rng.random((n, m)) < missing] = np.nan
        tokens_NM = rng.lognormal(5, 0.4, size=(n, m))
        data = RoutingDataset(
            ids=tuple(f"q{i}" for i in range(n)),
            queries=tuple(f"query {i}" for i in range(n)),
            targets=tuple(f"target-{j}" for j in range(m)),
            y_NM=y_NM,
            groups=tuple(f"g{i // 2}" for i in range(n)),
            datasets=tuple(f"set-{k}" for k in dataset_N),
            p_NM=true_NM.astype(np.float32),
        )
        p_NM = (1 / (1 + np.exp(-logit_NM))).astype(np.float32)
        return data, p_NM, np.geomspace(0.2, 20, m) * 1e-6 * (100 + tokens_NM)

    return make


@pytest.fixture(scope="session")
def rows() -> list[np.ndarray]:
    """[x_train, y_train, x_val, y_val]: 12 features, 3 targets, a third of the last missing."""
    rng = np.random.default_rng(0)
    n_train, n_val = 530, 170
    x = rng.normal(size=(n_train + n_val, 12)).astype(np.float32)
    logits = np.stack([x[:, 0] + x[:, 1], 2 * x[:, 2] * x[:, 3], x[:, 4] - x[:, 5]], 1)
    y = (rng.random(logits.shape) < 1 / (1 + np.exp(-1.5 * logits))).astype(np.float32)
    y[rng.random(len(y)) < 0.05] = np.nan
    y[rng.random(len(y)) < 0.33, 2] = np.nan
    y[:90, 1] = np.nan  # Whole stretches without one target, so that batches differ in counts.
    return [x[:n_train], y[:n_train], x[n_train:], y[n_train:]]
