"""A router's folder: router.json, written last, beside Orbax arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from routerjax.runtime import provenance
from routerjax.runtime.files import Folder
from routerjax.trunk.checkpoint import digest_of, load_arrays, save_arrays

SCHEMA_VERSION = 5
FILE = "router.json"


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
    folder.write_json(FILE, {"schema_version": SCHEMA_VERSION} | value | own)


def read(path: Any) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Reads what `write` wrote: the JSON values, and the arrays by part and name.

    Raises:
      ValueError: There is no whole router of this schema.
    """
    folder = Folder(path)
    value = folder.read_versioned(FILE, SCHEMA_VERSION, "router", "train one")
    arrays = load_arrays(folder / "arrays")
    if digest_of(arrays) != value["arrays_digest"]:
        raise ValueError(
            f"{folder.path}arrays is not what {FILE} was written with: copy the whole folder "
            f"again, or train the router again"
        )
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in value["parts"]}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = array
    return value, parts
