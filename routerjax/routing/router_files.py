"""A router's folder: router.json, written last, beside Orbax arrays."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from routerjax.runtime import provenance
from routerjax.runtime.files import Folder, fields_of
from routerjax.trunk.checkpoint import digest_of, load_arrays, save_arrays

SCHEMA_VERSION = 5
FILE = "router.json"
_REMEDY = "copy the whole folder again, or train the router again"


def write(path: Any, parts: Mapping[str, Mapping[str, np.ndarray]], value: dict[str, Any]) -> None:
    """Writes the arrays, then the JSON, which also names the packages' versions.

    A folder without the JSON holds no router.

    Args:
      path: The folder, local or a URL; a router already there is replaced.
      parts: Arrays by part and name; part names have no dot.
      value: JSON values.

    Raises:
      OSError: The folder cannot be written.
    """
    folder = Folder(path)
    arrays = {
        f"{part}.{name}": array
        for part, of_part in parts.items()
        for name, array in of_part.items()
    }
    folder.delete(FILE)
    save_arrays(folder / "arrays", arrays)
    own = {
        "arrays_digest": digest_of(arrays),
        "parts": list(parts),
        "versions": provenance.versions(),
    }
    folder.write_sealed(FILE, {"schema_version": SCHEMA_VERSION} | value | own)


def read(path: Any) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Reads what `write` wrote: the JSON values, and the arrays by part and name.

    Raises:
      ValueError: There is no whole router of this schema.
    """
    folder = Folder(path)
    value = folder.read_versioned(FILE, SCHEMA_VERSION, "router", "train one")
    try:
        arrays = load_arrays(folder / "arrays")
    except ValueError as error:
        raise ValueError(f"{error}: {_REMEDY}") from error
    if digest_of(arrays) != value.get("arrays_digest"):
        raise ValueError(f"{folder.path}arrays is not what {FILE} was written with: {_REMEDY}")
    with fields(path):
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in value["parts"]}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
    return value, parts


def fields(path: Any) -> contextlib.AbstractContextManager[None]:
    """Within it, a field of router.json that is missing or of another kind is a ValueError."""
    return fields_of(Folder(path).path + FILE, _REMEDY)
