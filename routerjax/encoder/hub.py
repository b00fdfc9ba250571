"""hub: where a checkpoint lies, its config and its tokenizer."""

import json
import pathlib
from typing import Any

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.registry import check_family, read_config

# What a hub download takes: no other framework's weights, no code, no folder with another copy.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
# Of a tokenizer one of these is there; of none transformers makes one that knows no word.
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json", "*.model")


def locate(source: str, revision: str | None) -> tuple[pathlib.Path, str | None]:
    """The folder of a checkpoint, downloaded if need be, and the commit it came from.

    Raises:
      ValueError: A path that is not there, or a revision of a local folder.
      OSError: The hub does not give it.
    """
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision: {source} is a local folder, which has none: leave it out")
        return folder, None
    if source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"encoder: there is no folder {source}, and it is not a hub id either")
    from huggingface_hub import snapshot_download

    try:
        result = snapshot_download(source, revision=revision, allow_patterns=_HUB_FILES,
                                  ignore_patterns=["*/*"])  # fmt: skip
    except Exception as error:
        raise OSError(
            f"encoder: there is no folder {source!r}, and the Hugging Face hub did not give a "
            f"model of that id: {error}"
        ) from error
    path = pathlib.Path(result)
    return path, path.name  # A snapshot's folder is named by its commit.


def read_config_file(folder: pathlib.Path) -> EncoderConfig:
    """Reads config.json.

    Raises:
      ValueError: There is none, or of no family in the table.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the config of a Hugging Face model, cannot read it: {error}"
        ) from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, the config of a model, got {raw!r:.80}")
    check_family(raw, str(path))
    # transformers fills in what the file leaves to its class's defaults.
    from transformers import AutoConfig

    try:
        full = AutoConfig.from_pretrained(folder).get_text_config().to_dict()
    except Exception as error:
        raise ValueError(f"{path}: transformers cannot read this config: {error}") from error
    return read_config(full, str(path))


def read_tokenizer(folder: pathlib.Path) -> Any:
    """Loads the tokenizer, without remote code.

    Raises:
      ValueError: There is none, or it cannot be loaded.
    """
    if not any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern)):
        raise ValueError(
            f"{folder}: it has no tokenizer, expected one of {', '.join(_VOCABULARIES)}: copy the "
            f"model's tokenizer files too"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # Of a damaged file any.
        raise ValueError(f"{folder}: its tokenizer cannot be loaded: {error}") from error
