"""Hidden states that are never kept: an encoder's row blocks, captured anew for every pass.

A block is laid out by sites, one for each (layer, pooling), and the sites are split over the
encoder's devices: whoever reads a site has all its rows, so that what follows a capture needs no
talk between devices. Batches go from the prefill into the block without leaving the devices.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from routerjax.encoder.batches import BatchPlan
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.pipeline import captured
from routerjax.encoder.extraction.plan import prepare
from routerjax.encoder.prompts import Prompts
from routerjax.encoder.selection import Selection
from routerjax.features.row_blocks import AlignedOutcomes
from routerjax.runtime import resume
from routerjax.runtime.devices import over_all, replicated
from routerjax.runtime.stages import Stages
from routerjax.store.shards import rows_per_block

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """Queries and the encoder that reads them, as passes over row blocks on the devices.

    Attributes:
      encoder: What reads the queries.
      selection: What is captured.
      rows: Outcomes in the order of the passes.
      ids: [N] query ids in that order.
      queries: [N] texts in that order. The first block is a sample, every so many-th row in order
        of token length: its moments are a pilot of all rows' (of the shortest they would not be).
        The other rows follow in order of token length.
      plan: The compiled shapes.
      prompts: Of `queries`; None where they would take too much memory and each pass makes them.
    """

    encoder: Encoder
    selection: Selection
    rows: AlignedOutcomes
    ids: tuple[str, ...]
    queries: tuple[str, ...]
    plan: BatchPlan
    prompts: Prompts | None

    @classmethod
    def prepare(
        cls,
        encoder: Encoder,
        data: "RoutingDataset",
        selection: Selection,
        batch_tokens: int | None = None,
    ) -> "Captured":
        """Measures every prompt and chooses the shapes; nothing is captured yet.

        Args: As in `extract`.

        Raises:
          ValueError: As `extract`; or this is one of several processes.
        """
        if jax.process_count() > 1:
            raise ValueError(
                f"probing without a store runs in one process, on all devices of its machine; this "
                f"job has {jax.process_count()}: extract a store with all of them and probe that"
            )
        job = prepare(encoder, data, selection, "float32", batch_tokens)
        n_rows = len(job.rows.ids)
        median = float(np.median(job.rows.n_tokens_N)) - len(job.plan.prefix)
        bucket = job.plan.buckets[int(np.searchsorted(job.plan.buckets, median))]
        # Nothing is stored: a block may be as large as a full batch, which keeps the devices busy.
        block_rows = max(
            rows_per_block(*selection.shape, encoder.width, "float32"),
            job.plan.batch_tokens // bucket,
        )
        block_rows = min(block_rows, n_rows)
        sample_R = ((np.arange(block_rows) + 0.5) * n_rows / block_rows).astype(np.int64)
        order_N = np.concatenate([sample_R, np.setdiff1d(np.arange(n_rows), sample_R)])
        row_of = {name: n for n, name in enumerate(data.ids)}
        chosen_N = np.array([row_of[job.rows.ids[n]] for n in order_N])
        return cls(
            encoder,
            selection,
            AlignedOutcomes(
                np.ones(n_rows, np.float32), data.correct_NM[chosen_N], tuple(data.targets)
            ),
            tuple(data.ids[n] for n in chosen_N),
            tuple(data.queries[n] for n in chosen_N),
            dataclasses.replace(job.plan, block_rows=block_rows),
            None if job.prompts is None else job.prompts.take(order_N),
        )

    def _prompts_of(self, block: int) -> Prompts:
        rows = slice(block * self.block_rows, (block + 1) * self.block_rows)
        if self.prompts is None:
            return self.encoder.prompter(self.queries[rows])
        return self.prompts.take(np.arange(len(self.queries))[rows])

    @property
    def block_rows(self) -> int:
        """R."""
        return self.plan.block_rows

    @property
    def sites_per_device(self) -> int:
        """Sites on each device; the last device may hold some that are always 0."""
        return -(-self.selection.n_sites // self.encoder.mesh.size)

    def blocks(self, what: str) -> Iterator[tuple[jax.Array, np.ndarray, np.ndarray]]:
        """One pass: prefills every query.

        Args:
          what: What the pass is for, beside the progress bar.

        Yields:
          x_SRD float32, S (L x P, filled up to a multiple of the devices) split over the mesh;
          weight_R, 0 for rows of an earlier block that only fill the last one; y_RM. The next step
          overwrites x_SRD in place: what is computed from it must be dispatched by then.

        Raises:
          FloatingPointError: An activation is not finite.
          resume.Stopped: SIGTERM came.
        """
        mesh = self.encoder.mesh
        n_rows, R = len(self.queries), self.block_rows
        x_SRD = _empty((self.sites_per_device * mesh.size, R, self.encoder.width), mesh)
        to_check: tuple[int, jax.Array] | None = None
        batches = captured(
            self.encoder,
            self.plan,
            self._prompts_of,
            range(-(-n_rows // R)),
            self.selection,
            self.plan.buckets,
            Stages(),
        )
        with resume.progress_bar(n_rows, 0, "queries", what) as bar:
            for block, prompts, at, _, h_LPBD in batches:
                # Without the wait every batch of the job would be queued, and hold its memory.
                h_LPBD.block_until_ready()
                at_B = np.full(h_LPBD.shape[2], R, np.int32)
                at_B[: at.stop - at.start] = np.arange(at.start, at.stop)
                x_SRD = _place(x_SRD, h_LPBD, at_B, mesh)
                bar.update(at.stop - at.start)
                n_held = len(prompts.tokens)
                if at.stop < n_held:
                    continue
                # A block late, when it has long been computed.
                self._refuse_infinite(to_check)
                to_check = block, _finite(x_SRD)
                rows = slice(block * R, block * R + n_held)
                missing = R - n_held
                yield (
                    x_SRD,
                    np.pad(self.rows.weight_N[rows], (0, missing)),
                    np.pad(self.rows.y_NM[rows], ((0, missing), (0, 0)), constant_values=np.nan),
                )
                if resume.stop_requested() and rows.stop < n_rows:
                    raise resume.Stopped(
                        f"Stopped ({what}) after {rows.stop} of {n_rows} queries. Probing without "
                        f"a store keeps nothing on the way.",
                        goes_on=False,
                    )
        self._refuse_infinite(to_check)

    def by_cell(self, value_S: jax.Array | np.ndarray) -> np.ndarray:
        """[L, P, ...] on the host from [S, ...]."""
        value_S = np.array(value_S[: self.selection.n_sites])
        return value_S.reshape(*self.selection.shape, *value_S.shape[1:])

    def _refuse_infinite(self, checked: tuple[int, jax.Array] | None) -> None:
        if checked is None:
            return
        block, finite_SR = checked[0], np.asarray(checked[1])[: self.selection.n_sites]
        if not finite_SR.all():
            i, row = (int(axis[0]) for axis in np.nonzero(~finite_SR))
            layer, pooling = self.selection.sites[i]
            raise FloatingPointError(
                f"query {self.ids[block * self.block_rows + row]!r} has a non-finite activation at "
                f"hidden state {layer}, pooling {pooling!r}. Try "
                f"--compute_dtype=float32; if it persists, the encoder's weights are damaged"
            )


def _empty(shape: tuple[int, ...], mesh: Mesh) -> jax.Array:
    # Made in place: an array made elsewhere first would be there whole, on one device.
    return jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=over_all(mesh))()


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _place(x_SRD: jax.Array, h_LPBD: jax.Array, at_B: jax.Array, mesh: Mesh) -> jax.Array:
    """The block with a batch's rows at `at_B`; those at R only filled the batch and are dropped."""
    h_SBD = h_LPBD.reshape(-1, *h_LPBD.shape[2:])
    h_SBD = jnp.pad(h_SBD, ((0, x_SRD.shape[0] - h_SBD.shape[0]), (0, 0), (0, 0)))
    sites, whole = over_all(mesh).spec, replicated(mesh).spec
    return jax.shard_map(
        lambda x_SRD, h_SBD, at_B: x_SRD.at[:, at_B].set(h_SBD, mode="drop"),
        mesh=mesh,
        in_specs=(sites, sites, whole),
        out_specs=sites,
    )(x_SRD, h_SBD, at_B)


@jax.jit
def _finite(x_SRD: jax.Array) -> jax.Array:
    return jnp.isfinite(x_SRD).all(axis=2)
