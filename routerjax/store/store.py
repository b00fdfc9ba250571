"""ActivationStore: pooled hidden states on disk, a row a query, committed by blocks of rows.

layout.py says what lies where on disk, and when a row block counts. In this room a block is always
a row block.
"""

import functools
import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from routerjax.runtime.files import Folder, digest
from routerjax.runtime.stages import Stages
from routerjax.store import layout
from routerjax.store.identity import identity_differences
from routerjax.store.rows import StoreRows
from routerjax.store.shards import Narrowed, all_finite, checksums, decode, encode, has_nan


class ActivationStore:
    """Pooled hidden states h_NLPD of N queries; made by `extract`, read by row blocks.

    Open one with `ActivationStore.open(path)`. Rows lie in order of token length, not in the order
    of the data file: `rows_of(ids)` finds them.
    """

    def __init__(self, files: layout.Files, which: Container[int] | None = None):
        self._files, self._which = files, which
        self.folder, self.meta, self.rows, self._array = files[:4]
        # (row block, layer, pooling) of chunks that are known to be those that were committed.
        self._compared: set[tuple[int, int, int]] = set()
        self._commits: dict[int, dict[str, Any]] = {}
        self.reload()

    @property
    def identity(self) -> dict[str, Any]:
        """What made the numbers: encoder, prompt, layers, poolings, dtypes."""
        return self.meta["identity"]

    @property
    def layers(self) -> tuple[int, ...]:
        """[L] hidden-state indices, ascending; 0 is the embedding output."""
        return tuple(self.identity["layers"])

    @property
    def poolings(self) -> tuple[str, ...]:
        """[P] names of the poolings."""
        return tuple(self.identity["poolings"])

    @property
    def width(self) -> int:
        """D, the hidden width."""
        return self.meta["width"]

    @property
    def ids(self) -> tuple[str, ...]:
        """[N] query ids in store order."""
        return self.rows.ids

    @property
    def n_tokens_N(self) -> np.ndarray:
        """[N] int64 tokens the encoder read, store order."""
        return self.rows.n_tokens_N

    @property
    def query_tokens_N(self) -> np.ndarray:
        """[N] int64 tokens of the query itself, store order."""
        return self.rows.query_tokens_N

    @property
    def block_rows(self) -> int:
        """Rows of every row block but the last."""
        return self.meta["block_rows"]

    @property
    def n_blocks(self) -> int:
        """Number of row blocks, committed or not."""
        return self._files.n_blocks

    def block_slice(self, block: int) -> slice:
        """The store rows of a row block."""
        start = block * self.block_rows
        return slice(start, min(start + self.block_rows, len(self.ids)))

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.rows.ids)}

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """[n] int64 store positions of query ids.

        Raises:
          ValueError: An id is not in the store.
        """
        missing = [name for name in ids if name not in self._row_of]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(ids)} queries are not in the store {self.folder.path}, "
                f"first {missing[0]!r}: extract these queries into a store of their own, or use "
                f"the store that was made from this data file"
            )
        return np.array([self._row_of[name] for name in ids], np.int64)

    # ---- row blocks

    def reload(self) -> None:
        """Reads which row blocks are committed."""
        unread = [b for b in self._files.committed() if b not in self._commits and self._reads(b)]
        self._commits |= self._files.read_commits(unread)

    def missing_blocks(self) -> list[int]:
        """Row blocks, of those it was opened for, without a commit or whose shard is missing."""
        there, mine = layout.shards(self.folder), filter(self._reads, range(self.n_blocks))
        return [b for b in mine if b not in self._commits or str(b) not in there]

    def n_committed(self) -> int:
        """Number of the row blocks that have a commit by now; none of these is read."""
        return len(self._files.committed())

    def commits(self) -> list[dict[str, Any]]:
        """The commit records of all committed row blocks, in their order."""
        self._read_all()
        return [self._commits[block] for block in sorted(self._commits)]

    def _reads(self, block: int) -> bool:
        return self._which is None or block in self._which

    def _read_all(self) -> None:
        """Reads the commits of row blocks that it was not opened for, too."""
        if self._which is not None:
            self._which = None
            self.reload()

    def write_block(
        self,
        block: int,
        held: np.ndarray | Narrowed,
        record: dict[str, Any],
        stages: Stages | None = None,
    ) -> None:
        """Writes one row block and commits it.

        Args:
          block: Its number.
          held: [L, P, rows, D] float32 pooled states, or the same as the devices encoded them.
          record: Further JSON fields of the commit (counts of tokens, batches).
          stages: Told how long "fetch" (from the devices), "check", "digest" and "write" take; what
            the write takes beyond the digest, which is computed meanwhile.

        Raises:
          ValueError: `held` has another number of rows than the row block.
          FloatingPointError: A state is not finite; nothing is written.
          OSError: The folder cannot be written; the row block stays uncommitted.
        """
        stages = stages or Stages()
        rows = self.block_slice(block)
        h_LPRD = held.h_LPRD if isinstance(held, Narrowed) else held
        if h_LPRD.shape[2] != rows.stop - rows.start:
            raise ValueError(
                f"held: block {block} has {rows.stop - rows.start} rows, got {h_LPRD.shape[2]}"
            )
        if isinstance(held, Narrowed):
            with stages.timed("fetch"):
                stored, exponents_LP, finite = held.fetch()
        else:
            with stages.timed("check"):
                stored, exponents_LP = encode(held, self.identity["store_dtype"])
                finite = all_finite(stored)
        if not finite:
            raise self._non_finite(np.asarray(h_LPRD), rows)
        if isinstance(held, Narrowed):
            held.release()  # Before the write, which takes longest.
        try:
            stored = stored.astype(self.identity["store_dtype"], copy=False)
            writing = self._array[:, :, rows].write(stored)
            with stages.timed("digest"):  # While it is written.
                result, sites = digest(stored), checksums(stored)
            with stages.timed("write"):
                writing.result()
        except Exception as error:
            raise OSError(
                f"cannot write block {block} of {self.folder.path}: {error}. Nothing is lost: the "
                f"same command continues with this block"
            ) from error
        commit = {"block": block, "rows": [rows.start, rows.stop], "digest": result}
        commit |= {"checksums": sites.tolist(), "exponents": exponents_LP.tolist()} | record
        self._files.write_commit(block, commit)
        self._commits[block] = commit

    def blocks(
        self,
        layers: Iterable[int] | None = None,
        poolings: Iterable[str] | None = None,
        which: Iterable[int] | None = None,
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Streams row blocks; the next one is read while the caller works on this one.

        Args:
          layers: Hidden-state indices to read, None for all.
          poolings: Names of poolings to read, None for all.
          which: Numbers of row blocks, None for all.

        Yields:
          The store rows, and h_LPRD [L, P, rows, D] float32.

        Raises:
          ValueError: A layer or pooling the store does not hold; a missing or damaged row block.
        """
        l_index = _positions(self.layers, layers, "layers")
        p_index = _positions(self.poolings, poolings, "poolings")
        wanted = list(range(self.n_blocks) if which is None else which)
        futures: dict[int, ts.Future] = {}
        for i, block in enumerate(wanted):
            for ahead in wanted[i : i + 2]:
                if ahead not in futures:
                    futures[ahead] = self._start_read(ahead, l_index, p_index)
            yield self.block_slice(block), self._finish(block, futures.pop(block), l_index, p_index)

    def verify(self, which: Iterable[int] | None = None) -> list[int]:
        """Reads committed row blocks whole; returns those that differ from what was committed.

        Args:
          which: Numbers of row blocks, None for all.
        """
        if which is None:
            self._read_all()
        l_index, p_index = list(range(len(self.layers))), list(range(len(self.poolings)))
        damaged = []
        for block in sorted(self._commits if which is None else self._commits.keys() & set(which)):
            commit = self._commits[block]
            try:
                read = self._start_read(block, l_index, p_index)
                whole = digest(read.result()) == commit["digest"]
            except Exception:
                # Whatever stops the read (a torn shard, a lost file), the row block is damaged.
                whole = False
            if not whole:
                damaged.append(block)
        return damaged

    def discard(self, block: int) -> None:
        """Takes back the commit of a row block, which is missing from then on."""
        self.folder.delete(f"blocks/{block}.json")
        del self._commits[block]

    def _start_read(self, block: int, l_index: list[int], p_index: list[int]) -> ts.Future:
        return self._array.oindex[l_index, p_index, self.block_slice(block), :].read(order="C")

    def _finish(
        self, block: int, future: ts.Future, l_index: list[int], p_index: list[int]
    ) -> np.ndarray:
        if block not in self._commits:
            self._read_all()
        commit = self._commits.get(block)
        if commit is None:
            raise ValueError(
                f"block {block} of {self.folder.path} is not committed: run the extract command "
                f"again, it continues where it stopped"
            )
        try:
            stored = future.result()
            problem = "a chunk is missing" if has_nan(stored) else None
            if not (problem or self._is_its_own(block, stored, l_index, p_index)):
                problem = "its rows are not those that were committed"
        except Exception as error:
            problem = str(error)
        if problem:
            raise ValueError(
                f"block {block} of {self.folder.path} is damaged ({problem}): delete "
                f"blocks/{block}.json there and run the extract command again, it makes only this "
                f"block anew"
            )
        exponents_LP = np.array(commit["exponents"], np.int32)[np.ix_(l_index, p_index)]
        return decode(stored, exponents_LP)

    def _is_its_own(
        self, block: int, stored: np.ndarray, l_index: list[int], p_index: list[int]
    ) -> bool:
        """Whether chunks are those of this row block; each is compared when it is first read."""
        commit, at = self._commits[block], list(itertools.product(l_index, p_index))
        if all((block, *chunk) in self._compared for chunk in at):
            return True
        if "checksums" in commit:
            wanted_LP = np.array(commit["checksums"])[np.ix_(l_index, p_index)]
            result = bool((checksums(stored) == wanted_LP).all())
        elif at == list(np.ndindex(len(self.layers), len(self.poolings))):
            result = digest(stored) == commit["digest"]
        else:
            return True  # Of a store from before there were checksums.
        if result:
            self._compared.update((block, *chunk) for chunk in at)
        return result

    def _non_finite(self, h_LPRD: np.ndarray, rows: slice) -> FloatingPointError:
        finite_LPR = np.isfinite(h_LPRD).all(axis=-1)
        if finite_LPR.all():
            return FloatingPointError(
                f"rows {rows.start} to {rows.stop - 1} are finite as captured, but not as rounded "
                f"to {self.identity['store_dtype']}: the block is not stored. Try again with "
                f"--store_dtype=float32; the device may be faulty"
            )
        layer, pooling, row = (int(axis[0]) for axis in np.nonzero(~finite_LPR))
        return FloatingPointError(
            f"query {self.ids[rows.start + row]!r} has a non-finite activation at hidden state "
            f"{self.layers[layer]}, pooling {self.poolings[pooling]!r} "
            f"({int((~finite_LPR).sum())} in the block): the block is not stored. Try "
            f"--compute_dtype=float32; if it persists, the encoder's weights are damaged"
        )

    # ---- making and opening

    @classmethod
    def create(
        cls, path: Any, identity: dict[str, Any], rows: StoreRows, width: int, plan: dict[str, Any]
    ) -> "ActivationStore":
        """Makes an empty store; arguments and errors as in `layout.create`."""
        return cls(layout.create(path, identity, rows, width, plan))

    @classmethod
    def open(
        cls, path: Any, complete: bool = True, which: Container[int] | None = None
    ) -> "ActivationStore":
        """Opens a store.

        Args:
          path: Its folder, local or a URL.
          complete: Whether to refuse a store that an interrupted job left unfinished.
          which: Numbers of the row blocks whose commits are read at once, where a process works on
            these alone; the others' are read when they are asked for. None for all.

        Raises:
          ValueError: There is no store, it is of another schema version, its rows are damaged, or
            it is unfinished.
        """
        store = cls(layout.load(path), which)
        missing = store.missing_blocks() if complete else []
        if missing:
            raise ValueError(
                f"{store.folder.path} is unfinished: {len(missing)} of {store.n_blocks} blocks are "
                f"missing, first {missing[0]}. Run the same extract command again, it continues"
            )
        return store

    def reopened(self) -> "ActivationStore":
        """The store as it is on disk by now; rows.json is not read again. Errors as in `open`."""
        return ActivationStore(layout.load(self.folder.path, self._files), self._which)

    @classmethod
    def exists(cls, path: Any) -> bool:
        """Whether a store, finished or not, lies at `path`."""
        return Folder(path).exists("store.json")

    def refuse_other(self, identity: dict[str, Any]) -> None:
        """Refuses a job whose identity differs from the store's.

        Raises:
          ValueError: Names each field that differs, and both values.
        """
        differences = identity_differences(self.identity, identity, "the store", "this job")
        if differences:
            raise ValueError(
                f"the store {self.folder.path} was made differently; "
                + "; ".join(differences)
                + ". Use another --store, or delete this one"
            )


def _positions(held: tuple, wanted: Iterable | None, name: str) -> list[int]:
    """Where the store holds what is wanted; all of it for None."""
    values = list(held if wanted is None else wanted)
    for value in values:
        if value not in held:
            raise ValueError(f"{name}: the store holds {list(held)}, got {value!r}")
    return [held.index(value) for value in values]
