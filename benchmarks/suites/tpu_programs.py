"""The programs of the line at real sizes, with abstract arguments: nothing of them is allocated."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.suites import checkpoints
from routerjax.encoder.capture import Graph, capture, read_prefix
from routerjax.encoder.extraction import block_buffer
from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.models.attention import longest_whole
from routerjax.encoder.models.ring import ring_rows
from routerjax.encoder.models.splash import padded_lengths, splash_kernel
from routerjax.encoder.selection import Selection
from routerjax.encoder.weights.loading import abstract_model, param_shapes, placed_model
from routerjax.encoder.weights.meshes import PARAMETERS_SHARE
from routerjax.encoder.weights.sharding import bytes_per_device, check_split, param_specs
from routerjax.features import moments, part
from routerjax.features.pca import Axes
from routerjax.runtime.devices import DATA, MODEL, by_rows, make_mesh, replicated
from routerjax.runtime.tuning import Tuning
from routerjax.store.shards import rows_per_block
from routerjax.sweeps import cross_validation
from routerjax.trunk import loop, net, step

LENGTHS = (32, 128, 512, 2048)
PREFIX_TOKENS = 64
BATCH_TOKENS = 8192
POOLINGS = ("last", "mean")
ATTENDING = ("attention", "borrowing", "borrowing_global", "global", "latent")  # Mixers.
TARGETS, FOLDS, MEMBERS, COMPONENTS = 9, 5, 10, 200
SWEEP_ROWS, SWEEP_DIMS, TRUNK_ROWS, QUERY_TOKENS = 4096, (50, 100, 150, 200, 300), 4096, 32


@dataclasses.dataclass(frozen=True)
class Program:
    """One row: programs that follow one another, mostly a single one.

    Attributes:
      name: What it does.
      batch: Prompts, rows or members.
      tokens: Of a prompt; 0 where there is none.
      prefix_tokens: That all prompts share and that have been read before.
      flops: Of the products that cannot be done without, on all chips.
      kernel_scores: Scores that attention's fused kernel computes, hidden ones of its tiles too.
      kernel_flops: Of its two products, and of experts' ragged products, which are kernels too.
      compile: Compiles for the described chips.
      data_trips: How often a loop runs whose number of steps comes from data.
    """

    name: str
    batch: int
    tokens: int
    flops: float
    compile: Callable[[], list[jax.stages.Compiled]]
    prefix_tokens: int = 0
    kernel_scores: float = 0.0
    kernel_flops: float = 0.0
    data_trips: float = 1.0

    @property
    def label(self) -> str:
        """As --programs calls it."""
        return f"{self.name}:{self.tokens}" if self.tokens else self.name


class Model:
    """An encoder on a mesh of described chips.

    Args:
      config: Its shape.
      mesh: The chips.
      selection: What is captured; None for all states, last and mean.
      prefix_tokens: Of the prefix that programs behind a prefix share.
      dtype: Of parameters and products.
    """

    def __init__(
        self,
        config: EncoderConfig,
        mesh: Mesh,
        selection: Selection | None = None,
        prefix_tokens: int = PREFIX_TOKENS,
        dtype: Any = jnp.bfloat16,
    ):
        check_split(config, mesh, mesh.size)
        self.config, self.mesh, self.tuning = config, mesh, Tuning.of(mesh)
        self.dtype, self.prefix_tokens = jnp.dtype(dtype), prefix_tokens
        exact = self.dtype == jnp.float32
        precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
        self.graphdef, self.params = placed_model(config, self.dtype, precision, mesh, self.tuning)
        self.selection = selection or Selection(tuple(range(config.n_states)), POOLINGS)

    def prefills(self) -> Iterator[Program]:
        """Of every length, without a shared prefix and with one."""
        for n_before in (0, self.prefix_tokens):
            if n_before:
                flops = self.config.flops(n_before, self.config.n_layers)
                yield Program("prefix", 1, n_before, flops, lambda: [self.prefix])
            for tokens in LENGTHS:
                # Of long prompts as many as devices that share parameters exchange.
                batch = max(BATCH_TOKENS // tokens, ring_rows(self.mesh, self.tuning))
                yield self.prefill(batch, tokens, n_before)

    def prefill(self, batch: int, tokens: int, n_before: int = 0) -> Program:
        """All states, last and mean."""
        c = self.config
        whole, before = (c.flops(n, c.n_layers) for n in (n_before + tokens, n_before))
        tile, longest = self.tuning.attention_tile, longest_whole(self.tuning, c.bidirectional)
        # Of the tiles of keys a tile of queries sees, on average, half and its own.
        tiles = -(-(n_before + tokens) // tile)
        pairs, scores = tokens * (n_before + tokens), self._kernel_scores(tokens, n_before)
        looped = pairs > longest**2 and not scores
        n_attending = sum(kind.mixer in ATTENDING for kind in c.kinds)
        skipped = max(0.0, c.n_heads * n_attending * pairs - scores) if scores else 0.0
        return Program(
            "prefill behind a prefix" if n_before else "prefill",
            batch, tokens, batch * (whole - before - 4 * c.head_dim * skipped),
            lambda: [self._compiled(batch, tokens, n_before)],
            prefix_tokens=n_before, data_trips=(tiles + 1) / 2 if looped else 1.0,
            kernel_scores=batch * scores,
            kernel_flops=batch * (4 * c.head_dim * scores + tokens * self._ragged_flops()),
        )  # fmt: skip

    def _ragged_flops(self) -> float:
        """Of a token's experts in all layers, where their products are ragged."""
        c, n_layers = self.config, sum("experts" in kind.ffn for kind in self.config.kinds)
        ragged = n_layers and not self.tuning.expert_tiles
        return 6.0 * n_layers * c.n_experts_per_token * c.width * c.expert_width if ragged else 0.0

    def _kernel_scores(self, tokens: int, n_before: int) -> float:
        """Of a prompt, all heads and layers, in the tiles that splash attention does not skip."""
        c, keys = self.config, n_before + tokens
        if tokens < self.tuning.splash_from or self.dtype != jnp.bfloat16 or c.n_distances:
            return 0.0
        queries, padded_keys = padded_lengths(tokens, keys, self.tuning)
        windows = [w for w, kind in zip(c.windows, c.kinds, strict=True) if kind.mixer in ATTENDING]
        scores = 0
        for window in set(windows):
            seen = min(window, keys)
            kernel = splash_kernel(1, tokens, keys, self.tuning, c.bidirectional, seen)
            tiles, sizes = kernel.fwd_mask_info.block_mask, kernel.kwargs["block_sizes"]
            computed = queries * padded_keys  # A mask that hides nothing has no tiles.
            if tiles is not None:
                computed = np.count_nonzero(tiles) * sizes.block_q * sizes.block_kv
            scores += windows.count(window) * computed
        return float(c.n_heads * scores)

    def _compiled(self, batch: int, tokens: int, n_before: int) -> jax.stages.Compiled:
        rows = by_rows(self.mesh) if batch % self.mesh.shape[DATA] == 0 else replicated(self.mesh)
        arrays = [array(shape, np.int32, rows) for shape in ((batch, tokens), (batch,), (batch, 2))]
        prefix = None
        if n_before:
            shapes = jax.eval_shape(self._read_prefix, *self._prefix_arguments)
            prefix = jax.tree.map(
                lambda x, sharding: array(x.shape, x.dtype, sharding),
                shapes, self.prefix.output_shardings,
            )  # fmt: skip
        with on(self.mesh):
            return capture.lower(
                Graph(self.graphdef), self.params, *arrays, selection=self.selection, prefix=prefix
            ).compile()

    @functools.cached_property
    def prefix(self) -> jax.stages.Compiled:
        """The compiled reading of a prefix."""
        with on(self.mesh):
            return self._read_prefix.lower(*self._prefix_arguments).compile()

    @property
    def _read_prefix(self) -> Any:
        read = functools.partial(read_prefix, Graph(self.graphdef), layers=self.selection.layers)
        return jax.jit(read)

    @property
    def _prefix_arguments(self) -> tuple[Any, ...]:
        shape = (self.mesh.shape[DATA], self.prefix_tokens)
        return self.params, array(shape, np.int32, by_rows(self.mesh))

    def others(self) -> Iterator[Program]:
        """Block writing, moments, the sweep's solver, trunks, a decision."""
        c = self.config
        L, D, n_poolings = c.n_states, c.width, len(POOLINGS)
        one = make_mesh("data:1", list(self.mesh.devices.flat))
        whole = replicated(one)
        R = rows_per_block(L, n_poolings, D, "float16")
        f32 = functools.partial(array, dtype=np.float32, sharding=whole)
        buffer, batch = f32((L, n_poolings, R, D)), f32((L, n_poolings, 64, D))
        yield Program("a row block: a batch put into it", 64, 0, 0.0, lambda: [
            block_buffer._put.lower(buffer, batch, array((), np.int32, whole),
                                    sharding=whole).compile()
        ])  # fmt: skip
        yield Program("a row block: narrowed to float16", R, 0, 0.0, lambda: [
            block_buffer._narrow.lower(buffer, n_rows=R).compile()
        ])  # fmt: skip
        block = (buffer, f32((R,)), f32((R, TARGETS)))
        for gram in (False, True):
            begin = functools.partial(moments.begin, gram=gram)
            running = placed(jax.eval_shape(begin, *block), whole)
            name = "moments with products" if gram else "moments"
            flops = 2.0 * L * n_poolings * R * D * (D * gram + 2 * TARGETS)
            compile_one = functools.partial(_compiled, moments.update, running, *block)
            yield Program(name, R, 0, flops, compile_one)
        yield self._trunks(one)
        yield self._decision(one)
        yield self._solver(one)  # Last: its eigenvectors take the compiler many minutes.

    def _solver(self, mesh: Mesh) -> Program:
        D, rows, devices = self.config.width, -(-SWEEP_ROWS // FOLDS), tuple(mesh.devices.flat)
        by_device = NamedSharding(Mesh(np.array(devices), (cross_validation.DEVICES,)),
                                  P(cross_validation.DEVICES))  # fmt: skip
        shapes = ((1, 1, FOLDS, rows, D), (1, FOLDS, rows, TARGETS), (1, FOLDS, rows))
        arrays = [array(shape, np.float32, by_device) for shape in shapes]
        widest = min(max(SWEEP_DIMS), D)
        flops = 2.0 * FOLDS * rows * D * (D + FOLDS * widest)
        return Program(
            "sweep: a site's folds", SWEEP_ROWS, 0, flops,
            lambda: [cross_validation._compiled(SWEEP_DIMS, devices).lower(*arrays).compile()],
        )  # fmt: skip

    def _trunks(self, mesh: Mesh) -> Program:
        devices = tuple(mesh.devices.flat)
        program = step.Program(COMPONENTS, (256, 128), TARGETS, (True, True), 512, 15, 1e-4)
        by_device = NamedSharding(Mesh(np.array(devices), (loop.DEVICES,)), P(loop.DEVICES))
        start = functools.partial(loop._start, program)
        state = jax.eval_shape(start, array((MEMBERS,), np.uint32))
        f32 = functools.partial(array, dtype=np.float32)
        setting = step.Setting(f32((MEMBERS,)), f32((MEMBERS,)), f32((MEMBERS, 2)),
                               array((MEMBERS,), np.int32))  # fmt: skip
        data = step.Data(*(f32(shape) for n in (TRUNK_ROWS, TRUNK_ROWS // 8)
                           for shape in ((1, n, COMPONENTS), (n, TARGETS))))  # fmt: skip
        arguments = jax.tree.map(
            lambda x: array((1, *x.shape), x.dtype, by_device), (state, setting, data)
        )
        sizes = [COMPONENTS, 256, 128, TARGETS]
        weights = sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))
        flops = 2.0 * weights * MEMBERS * (3 * TRUNK_ROWS + TRUNK_ROWS // 8)
        epoch = loop._compiled_epoch
        return Program("trunks: an epoch", MEMBERS, 0, flops, lambda: [
            epoch(program, 1, self.tuning.one_by_one, devices).lower(*arguments).compile()
        ])  # fmt: skip

    def _decision(self, mesh: Mesh) -> Program:
        """The prefill of one query, its features and the trunk: three programs in a chain."""
        c, whole = self.config, replicated(mesh)
        f32 = functools.partial(array, dtype=np.float32, sharding=whole)
        n_sites = c.n_states
        axes = Axes(f32((n_sites, c.width)), f32((n_sites, c.width)),
                    f32((n_sites, c.width, COMPONENTS)))  # fmt: skip
        sites = (array((n_sites, 2), np.int32, whole),)
        h_LPRD = f32((c.n_states, len(POOLINGS), 1, c.width))
        shape = (COMPONENTS, (256, 128), TARGETS)
        members, *_ = jax.eval_shape(
            functools.partial(loop._start, step.Program(COMPONENTS, (256, 128), TARGETS,
                                                        (True, True), 512, 15, 1e-4)),
            jax.ShapeDtypeStruct((5,), np.uint32),
        )  # fmt: skip
        trunk = placed(net.by_name(members), whole)
        return Program(
            "a decision", 1, QUERY_TOKENS, c.flops(QUERY_TOKENS, c.n_layers),
            lambda: [
                self._compiled(1, QUERY_TOKENS, 0),
                part.apply_parts.lower(h_LPRD, sites, (axes,)).compile(),
                net._score.lower(shape, trunk, f32((1, COMPONENTS))).compile(),
            ],
        )  # fmt: skip


def _compiled(function: Any, *arguments: Any, **options: Any) -> list[jax.stages.Compiled]:
    return [function.lower(*arguments, **options).compile()]


def config_of(shape: str) -> EncoderConfig:
    """The encoder of a shape's name."""
    return read_config(checkpoints.SHAPES[shape] | {"dtype": "bfloat16"}, shape)


def smallest_mesh(shape: str, devices: list[jax.Device], chip_bytes: int) -> Mesh:
    """The mesh of the fewest chips that hold a shape's parameters.

    Raises:
      ValueError: All of them are too few.
    """
    config = config_of(shape)
    _, state = abstract_model(config, jnp.bfloat16, jax.lax.Precision.DEFAULT, Tuning.tpu())
    shapes = param_shapes(state)
    for n_model in (n for n in range(1, len(devices) + 1) if config.n_heads % n == 0):
        held = bytes_per_device(shapes, param_specs(shapes, config, n_model), 2, n_model)
        if held <= PARAMETERS_SHARE * chip_bytes:
            return make_mesh(f"{MODEL}:{n_model}", devices)
    raise ValueError(
        f"{shape} does not fit: of {len(devices)} chips each would hold {held / 1e9:.1f} GB of "
        f"parameters, {PARAMETERS_SHARE:.0%} of its {chip_bytes / 1e9:.1f} GB may be; take a "
        f"larger topology"
    )


def matrix_product(device: jax.Device) -> tuple[float, jax.stages.Compiled]:
    """The operations of a large bfloat16 product, and it: what a compiler's full rate is."""
    n = 8192
    a = array((n, n), jnp.bfloat16, replicated(make_mesh("data:1", [device])))
    return 2.0 * n**3, jax.jit(jnp.matmul).lower(a, a).compile()


def copied_array(device: jax.Device) -> tuple[float, jax.stages.Compiled]:
    """The bytes that one pass over a large array moves, and it: the memory's rate."""
    a = array((2**14, 2**14), np.float32, replicated(make_mesh("data:1", [device])))
    return 2.0 * 4 * 2**28, jax.jit(lambda a: a + 1).lower(a).compile()


def softmaxed(device: jax.Device, n_steps: int) -> tuple[float, jax.stages.Compiled]:
    """What an online softmax does to one score, done so often to many: the vector units' rate.

    A mask, the largest so far, an exponential and the sum so far; maxima and sums go from one score
    to the next of the same place, as across tiles.
    """
    n = 1024
    scores = array((n, n), np.float32, replicated(make_mesh("data:1", [device])))

    def steps(x: jax.Array) -> jax.Array:
        query, key = (jax.lax.broadcasted_iota(jnp.int32, (n, n), i) for i in (0, 1))
        most, total = jnp.full_like(x, -1e30), jnp.zeros_like(x)
        for i in range(n_steps):
            x = jnp.where(query + i >= key, x, -1e30)
            most = jnp.maximum(most, x)
            x = jnp.exp(x - most)
            total = total + x
        return total

    return float(n_steps * n * n), jax.jit(steps).lower(scores).compile()


def array(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding | None = None) -> Any:
    """An argument without numbers."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes with a place."""
    return jax.tree.map(lambda x: array(x.shape, x.dtype, sharding), tree)


def on(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Where partition.py finds the mesh, as `Prefill` sets it."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()
