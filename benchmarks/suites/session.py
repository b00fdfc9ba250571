"""What the suites of one run share: sizes, encoder, queries, the store of their hidden states."""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import routerjax as rj
from benchmarks.suites import checkpoints, machine
from experiments import options

TORCH = "torch is not installed (pip install '.[bench]'): what it would do"
SCIKIT_LEARN = "scikit-learn is not installed (pip install '.[bench]'): what it would do"


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the suites.

    Attributes:
      encoder: Name in checkpoints.SHAPES, where none is given; MiniLM if empty.
      queries: Simulated queries, where no label file is given.
      capture: Queries of the capture suite.
      eager: Of them, those run without compilation.
      shapes: (name in checkpoints.SHAPES, queries, mean tokens) of the encoders suite.
      numpy_rows: Rows of the probes suite.
      sweep_share: Share of the sweep's cells that scikit-learn computes.
      trunks: Members of the trunks suite.
      alone: How many of them are trained one by one, and in torch.
      processes: Fresh processes that are started, cold and warm.
      peer_tokens: About how many tokens of its queries an encoder's peers read, scaled to all.
      sweep_dims: PCA widths of the sweep.
      depths: Blocks of the deep encoders whose compilation is timed.
      scaled: Queries at most of the rows that show how capture grows with them.
      scaling: Whether suites also show how their time grows with sizes.
      tunes_peers: Whether torch on a CPU gets the rows and threads that are best for each length.
      float8: Whether encoders are measured in float8 too, where the devices take it.
      forward_tokens: Tokens of the batches of the forward suite.
    """

    queries: int
    capture: int
    eager: int
    shapes: tuple[tuple[str, int, int], ...]
    numpy_rows: int
    sweep_share: float
    trunks: int
    alone: int
    processes: int
    peer_tokens: int = 10**9
    sweep_dims: tuple[int, ...] = (50, 100, 150, 200, 300)
    depths: tuple[int, ...] = (8, 64)
    scaled: int = 1000
    scaling: bool = True
    tunes_peers: bool = False
    encoder: str = ""
    float8: bool = False
    forward_tokens: tuple[int, ...] = (512, 1024)


SCALES = {
    "cpu": Scale(
        queries=500,
        capture=64,
        eager=4,
        shapes=(("smollm2-135m", 8, 64),),
        numpy_rows=500,
        sweep_dims=(50, 100),
        sweep_share=0.01,
        trunks=8,
        alone=5,
        processes=1,
    ),
    "full": Scale(
        queries=4608,
        capture=10**9,
        peer_tokens=2**16,
        eager=16,
        shapes=(("smollm2-135m", 64, 64), ("qwen3-0.6b", 32, 48)),
        numpy_rows=10**9,
        sweep_share=0.1,
        trunks=200,
        alone=20,
        processes=5,
        tunes_peers=True,
    ),
    "guard": Scale(
        queries=1000,
        capture=250,
        eager=4,
        shapes=(("smollm2-135m", 8, 64),),
        numpy_rows=1000,
        sweep_dims=(50, 100),
        sweep_share=0.03,
        trunks=10,
        alone=2,
        processes=1,
        scaling=False,
    ),
    "accelerator": Scale(
        encoder="decoder-384",
        queries=8192,
        capture=8192,
        eager=8,
        shapes=(("qwen3-0.6b", 100_000, 128), ("qwen3-8b", 4096, 128)),
        peer_tokens=2**16,
        numpy_rows=8192,
        sweep_share=0.001,
        trunks=1000,
        scaled=8192,
        alone=6,
        processes=1,
        scaling=False,
        float8=True,
        forward_tokens=(4096, 8192, 16384, 32768),
    ),
    "tiny": Scale(
        encoder="tiny",
        queries=200,
        capture=64,
        eager=4,
        shapes=(("tiny", 64, 16), ("tiny-2", 16, 16)),
        numpy_rows=200,
        sweep_dims=(8, 16),
        sweep_share=0.001,
        trunks=8,
        alone=2,
        processes=1,
        scaling=False,
        float8=True,
    ),
}


class Session:
    """One run of the benchmark.

    Attributes:
      folder: For stores and checkpoints of this run.
      scale: Sizes.
      rounds: Timed rounds.
      seed: Of all that is drawn.
      source: Folder or hub id of the encoder.
      encoder: It, on one device.
      data: The queries.
    """

    def __init__(self, config: Any):
        self.folder = rj.Folder(config.workdir)
        self.scale = SCALES[config.scale]
        self.rounds: int = config.rounds
        self.seed: int = config.seed
        self._config = config
        self._in_each_dtype: dict[str, list[rj.Encoder]] = {}

    def prepare(self, suites: Sequence[str]) -> None:
        """What suites need and no device computes: imports, checkpoints, queries."""
        for name in ("torch", "transformers", "sklearn"):
            if installed(name):
                importlib.import_module(name)
        of_shapes = {"encoders", "forward"}
        if not of_shapes.isdisjoint(suites):
            for name, _, _ in self.shapes:
                self.checkpoint(name)
        if not of_shapes.issuperset(suites):
            _ = self.source, self.data

    @functools.cached_property
    def source(self) -> str:
        """Folder or hub id of the encoder; one of random weights is written where it is first."""
        name = self._config.encoder or self.scale.encoder
        if name in checkpoints.SHAPES:
            return self.checkpoint(name)
        return options.find_encoder(self._config.encoder)

    def checkpoint(self, name: str) -> str:
        """The folder of a shape with random weights; kept for a second run."""
        path = self.folder.local_path() / f"{name}-{file_dtype()}"
        return checkpoints.write(path, checkpoints.SHAPES[name], file_dtype())

    @property
    def topologies(self) -> list[str]:
        """Of the tpu suite."""
        return self._config.topology

    @property
    def tpu_programs(self) -> list[str]:
        """Those of the tpu suite that are wanted; none for all of them."""
        return self._config.programs

    @property
    def tpu_mesh(self) -> str:
        """Of the tpu suite's programs; empty for the fewest chips that hold the weights."""
        return self._config.mesh

    @property
    def shapes(self) -> list[tuple[str, int, int]]:
        """(name, queries, mean tokens) of the encoders suite: those of the scale that are wanted.

        Raises:
          ValueError: The scale has no such shape.
        """
        wanted = self.wanted_shapes([name for name, _, _ in self.scale.shapes])
        return [shape for shape in self.scale.shapes if shape[0] in wanted]

    def wanted_shapes(self, names: Sequence[str]) -> Sequence[str]:
        """Those of --shapes; without, all that a suite has.

        Raises:
          ValueError: It has no such shape.
        """
        for name in self._config.shapes:
            if name not in names:
                known = ", ".join(dict.fromkeys(names))
                raise ValueError(f"--shapes: expected some of {known}, got {name!r}")
        return self._config.shapes or names

    @functools.cached_property
    def encoder(self) -> rj.Encoder:
        return self.load(self.source)

    def load(
        self, source: str, mesh: str = "data:1", compute_dtype: str | None = None
    ) -> rj.Encoder:
        """An encoder, in the run's dtype unless another one is given."""
        dtype = compute_dtype or self._config.compute_dtype
        return rj.Encoder.from_pretrained(source, compute_dtype=dtype, mesh=rj.make_mesh(mesh))

    def in_each_dtype(self, source: str) -> list[rj.Encoder]:
        """An encoder in the run's dtype and perhaps in float8; kept until the next one's."""
        if source not in self._in_each_dtype:
            self._in_each_dtype.clear()
            encoders = [self.load(source)]
            taken = encoders[0].tuning.float8_products is not None
            if self.scale.float8 and taken and encoders[0].identity["compute_dtype"] != "float8":
                encoders.append(self.load(source, compute_dtype="float8"))
            self._in_each_dtype[source] = encoders
        return self._in_each_dtype[source]

    @functools.cached_property
    def data(self) -> rj.RoutingDataset:
        if self._config.data:
            return options.read_data(self._config)[0]
        return rj.simulate(max(self._config.n_queries, self.scale.queries), self.seed)

    @functools.cached_property
    def store(self) -> rj.ActivationStore:
        """All hidden states of the queries, last and mean; kept for a second run."""
        return rj.extract(self.encoder, self.data, self.folder / f"store-{len(self.data)}")

    def asked_for(self, n: int) -> int:
        """A number of queries, or what --n_queries says instead."""
        return self._config.n_queries or n

    def some(self, n: int) -> rj.RoutingDataset:
        """A random sample of the queries, in their order."""
        n = min(self.asked_for(n), len(self.data))
        chosen = np.random.default_rng(self.seed).choice(len(self.data), n, replace=False)
        return self.data.select(np.sort(chosen))


def file_dtype() -> str:
    """Of the checkpoints that are written here: what an encoder computes in by default."""
    return "float32" if machine.on_cpu() else "bfloat16"


def shape_of(encoder: rj.Encoder) -> str:
    """The encoder as results show it: what is computed, not where on this machine it lies."""
    c, dtype = encoder.config, encoder.identity["compute_dtype"]
    return f"{c.family} of {c.n_layers} blocks, {c.width} wide, {dtype}"


def installed(*modules: str) -> bool:
    """Whether all of these can be imported; none is."""
    return all(importlib.util.find_spec(name) is not None for name in modules)


def several_devices() -> str | None:
    """Why nothing can be split over devices; None where it can."""
    if len(jax.local_devices()) > 1:
        return None
    return "several devices: there is one (on CPU, --cpu_devices=2 makes two)"
