"""The files of an ActivationStore, in a folder or anything that TensorStore opens.

    store.json        the identity (encoder, prompt, layers, dtypes), the plan of batches, and
                      the digest of rows.json; has a digest of its own (`seal`)
    rows.json         query ids and token counts, in store order (by token length)
    h/                zarr3 array [L, P, N, D]: a shard is a row block, a chunk a (layer, pooling);
                      of int8 [L, P, N, D + 4], where the last four bytes are a float32 scale
    blocks/<n>.json   written after the shard of row block n: its digest, a checksum of each of its
                      chunks, and its powers of two; has a seal too, which is of its name and of
                      its store

A row block counts only where its `blocks/<n>.json` is there, whole. Chunks carry CRC32C and the
fill value is NaN (of int8 a scale of 0), so a torn chunk fails to decode and a deleted one reads as
that: both are reported, never used.
"""

import concurrent.futures
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorstore as ts

from routerjax.runtime.files import Folder, digest, unsealed
from routerjax.runtime.resume import owner_of
from routerjax.store import rows as rows_file
from routerjax.store.rows import StoreRows
from routerjax.store.shards import open_array, rows_per_block, stored_width

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 4
_AT_ONCE = 32  # Commits that are read at once: in a bucket each takes tens of milliseconds.


class Files(NamedTuple):
    """An open store's files.

    Attributes:
      folder: Where they lie.
      meta: The values of store.json.
      rows: The rows of rows.json.
      array: h_LPND.
      owner: A digest of `meta`, which the seals of this store's commits are of too.
    """

    folder: Folder
    meta: dict[str, Any]
    rows: StoreRows
    array: ts.TensorStore
    owner: str

    @property
    def n_blocks(self) -> int:
        """Number of row blocks, committed or not."""
        return -(-len(self.rows.ids) // self.meta["block_rows"])

    def write_commit(self, block: int, commit: dict[str, Any]) -> None:
        """Marks a row block as whole; written after its shard."""
        self.folder.write_sealed(f"blocks/{block}.json", commit, indent=None, of=self.owner)

    def committed(self) -> list[int]:
        """Numbers of the row blocks whose commit is there, read or not, whole or damaged."""
        result = []
        for name in self.folder.list("blocks/"):
            number = name.removeprefix("blocks/").removesuffix(".json")
            # Others are no commits: a file browser or a copy leaves files such as .DS_Store.
            if number.isdecimal() and name == f"blocks/{int(number)}.json":
                result.append(int(number))
        return [block for block in result if block < self.n_blocks]

    def read_commits(self, blocks: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The commits of these row blocks by number, without those missing or damaged."""
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as readers:
            read = readers.map(lambda block: (block, self._read_commit(block)), blocks)
            return {block: commit for block, commit in read if commit is not None}

    def _read_commit(self, block: int) -> dict[str, Any] | None:
        name = f"blocks/{block}.json"
        try:
            commit = self.folder.read_sealed(name, self.owner)
            # Seals were not always of names.
            if commit is not None and commit.get("block") != block:
                raise ValueError(f"{self.folder.path}{name} is the commit of another block")
        except ValueError as error:
            # A damaged commit does not show that its row block is whole.
            logger.warning("block %d counts as missing: %s", block, error)
            return None
        return commit


def create(path: Any, identity: dict[str, Any], rows: StoreRows, width: int, plan: Any) -> Files:
    """Makes the files of an empty store. `store.json` is written last: without it there is none.

    Args:
      path: The folder, local or a URL.
      identity: What decides the numbers, as JSON values.
      rows: In store order.
      width: D.
      plan: Of the batches, as JSON values.

    Raises:
      OSError: The folder cannot be written.
    """
    folder = Folder(path)
    shape = (len(identity["layers"]), len(identity["poolings"]), len(rows.ids), width)
    block_rows = rows_per_block(shape[0], shape[1], width, identity["store_dtype"])
    kept = (*shape[:3], stored_width(width, identity["store_dtype"]))
    array = open_array(folder, kept, block_rows, identity["store_dtype"], create=True)
    # Commits left over from a deleted store would pass for commits of this one.
    folder.delete_all("blocks/")
    rows_digest = rows.save(folder)
    meta = {"schema_version": SCHEMA_VERSION, "identity": identity, "width": width}
    meta |= {"block_rows": block_rows, "plan": plan, "rows_digest": rows_digest}
    folder.write_sealed("store.json", meta)
    meta = unsealed(folder.read_json("store.json"), folder.path, "store.json")
    return Files(folder, meta, rows, array, owner_of(meta))


def load(path: Any, before: Files | None = None) -> Files:
    """Opens the files of a store in a folder, local or a URL.

    Args:
      path: The folder.
      before: What was returned before: where store.json is still the same, rows.json, which is
        large, is not read again.

    Raises:
      ValueError: There is no store, it is of another schema version, or its description or its rows
        are damaged.
    """
    folder = Folder(path)
    meta = _read_meta(folder)
    if before is not None and before.meta == meta:
        rows = before.rows
    else:
        rows = StoreRows.load(folder, meta["rows_digest"])
    array = open_array(*_array_of(folder, meta, len(rows.ids)), create=False)
    return Files(folder, meta, rows, array, owner_of(meta))


def restore(path: Any, make_rows: Callable[[], StoreRows]) -> None:
    """Writes what is damaged or missing of the files of a store that can be made anew.

    These are rows.json and the description of the array, which holds no rows.

    Args:
      path: The store's folder, local or a URL.
      make_rows: Returns the rows as the job would have them today.

    Raises:
      ValueError: As `load`, or the rows are not those of the store.
      OSError: The folder cannot be written.
    """
    folder = Folder(path)
    meta = _read_meta(folder)
    if folder.digest(rows_file.NAME) != meta["rows_digest"]:
        rows = make_rows()
        if digest(rows.to_bytes()) == meta["rows_digest"]:
            logger.warning("%s%s was damaged and is restored", folder.path, rows_file.NAME)
            rows.save(folder)
    rows = StoreRows.load(folder, meta["rows_digest"])
    arguments = _array_of(folder, meta, len(rows.ids))
    try:
        open_array(*arguments, create=False)
    except OSError as error:
        logger.warning("%sh/zarr.json is restored: %s", folder.path, error)
        folder.delete("h/zarr.json")
        open_array(*arguments, create=True, anew=False)


def _array_of(
    folder: Folder, meta: dict[str, Any], n_rows: int
) -> tuple[Folder, tuple[int, ...], int, str]:
    """The arguments of `open_array` for a store."""
    identity = meta["identity"]
    width = stored_width(meta["width"], identity["store_dtype"])
    shape = (len(identity["layers"]), len(identity["poolings"]), n_rows, width)
    return folder, shape, meta["block_rows"], identity["store_dtype"]


def _read_meta(folder: Folder) -> dict[str, Any]:
    raw = folder.read_json("store.json")
    if raw is None:
        raise ValueError(f"{folder.path} holds no activation store (store.json): run extract")
    # Those of other versions have no seal, or another.
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{folder.path}store.json has schema version {version!r}, this routerjax reads "
            f"{SCHEMA_VERSION}: extract again with it"
        )
    try:
        return unsealed(raw, folder.path, "store.json")
    except ValueError as error:
        raise ValueError(
            f"{error}: copy it from where the store was made, or delete it and extract again"
        ) from error


def shards(folder: Folder) -> set[str]:
    """Numbers, as in file names, of the row blocks whose shard is there."""
    return {name.split("/")[-2] for name in folder.list("h/c/")}
