"""hub: where a checkpoint lies; of a folder the config and the tokenizer."""

import json
import pathlib
import re
from typing import Any

from routerjax.encoder.families import registry
from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.fields import check_numbers, text_config
from routerjax.encoder.tokenizer_check import check_file
from routerjax.runtime.files import stand_in
from routerjax.runtime.torch_later import torch_later

# What a hub download takes: no other framework's weights, no code, no other copy of the weights.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")  # What the name of a split file's part ends in.
# Of a tokenizer one of these is there; of none transformers makes one that knows no word.
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json", "*.model")
# What a folder without config.json may be, by a file that it has, and what would do.
_OTHERS = {
    "adapter_config.json": "an adapter: merge it into its base model and save that",
    "params.json": "a model in its maker's own format: take the copy with config.json",
    "modules.json": "a sentence-transformers model: name its folder that has a config.json",
}


def locate(source: str, revision: str | None) -> tuple[pathlib.Path, str | None]:
    """The folder of a checkpoint or its GGUF file, downloaded if need be, and the commit it is of.

    Args:
      source: A folder, a GGUF file, a hub id, or a hub id and the name of a GGUF file within:
        "org/name/file.gguf". Of a folder with GGUF files and no safetensors, the GGUF file.
      revision: Of the hub repository.

    Raises:
      ValueError: A path that is not there, a revision of a local one, or a folder with GGUF files
        of several models.
      OSError: The hub does not give it.
    """
    path = pathlib.Path(source).expanduser()
    kind = "file" if source.endswith(".gguf") else "folder"
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision: {source} is a local {kind}, which has none: leave it out")
        if path.is_file() and kind != "file" and not _is_gguf(path):
            raise ValueError(
                f"encoder: {source} is a file, and no GGUF file: name a folder with config.json, "
                f"tokenizer and model.safetensors, such as its own, a GGUF file or a hub id"
            )
        return _gguf_within(path) or path, None
    repository, file = source, ""
    if kind == "file":
        owner, name, file = [*source.split("/", 2), "", ""][:3]
        repository = f"{owner}/{name}"
    is_id = not source.startswith((".", "/", "~")) and repository.count("/") <= 1
    if not is_id or (kind == "file" and not file):
        raise ValueError(f"encoder: there is no {kind} {source}, and it is not a hub id either")
    from huggingface_hub import snapshot_download

    # Of a split file all parts.
    wanted = [_PART.sub(r"-*-of-\1.gguf", file)] if file else _HUB_FILES
    others = None if file else ["*/*", "consolidated*"]
    try:
        result = snapshot_download(repository, revision=revision, allow_patterns=wanted,
                                   ignore_patterns=others)  # fmt: skip
    except Exception as error:
        raise OSError(
            f"encoder: there is no {kind} {source!r}, and the Hugging Face hub did not give a "
            f"model of that id: {error}"
        ) from error
    folder = pathlib.Path(result)
    if file and not (folder / file).is_file():
        raise OSError(f"encoder: the Hugging Face hub has no {file} in {repository}")
    if not file and not (folder / "config.json").is_file():
        raise ValueError(
            f"encoder: {source} has no config.json on the Hugging Face hub; of GGUF files name "
            f"one: {source}/NAME.gguf"
        )
    return folder / file, folder.name  # A snapshot's folder is named by its commit.


def _is_gguf(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _gguf_within(path: pathlib.Path) -> pathlib.Path | None:
    """The GGUF file of a folder without safetensors; None where it has none."""
    if path.is_file():
        return None
    # Of a split one the first part. Beside the text model may lie the tower of another modality.
    files = sorted(
        file for file in path.glob("*.gguf")
        if not file.name.startswith("mmproj")
        and (not _PART.search(file.name) or "-00001-of-" in file.name)
    )  # fmt: skip
    if not files or any(path.glob("*.safetensors")):
        return None
    if len(files) > 1:
        raise ValueError(
            f"encoder: {path} has {len(files)} GGUF files, {', '.join(f.name for f in files)}: "
            f"name one of them"
        )
    return files[0]


def refuse_stand_ins(path: pathlib.Path) -> None:
    """Refuses a checkpoint of which a file is a Git LFS pointer or an HTML page.

    Args:
      path: The folder, or a GGUF file.

    Raises:
      ValueError: Names the file.
    """
    files = [path] if path.is_file() else [f for each in _HUB_FILES for f in path.glob(each)]
    for file in files:
        # A folder of such a name, or a link to nothing, is for those who read the file to name.
        if file.is_file() and (what := stand_in(file)):
            raise ValueError(f"{file} is {what}")


def read_config(folder: pathlib.Path) -> EncoderConfig:
    """Reads config.json.

    Raises:
      ValueError: There is none, or of no family in the table.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        other = [what for file, what in _OTHERS.items() if (folder / file).is_file()]
        if isinstance(error, FileNotFoundError) and other:
            raise ValueError(f"{folder} has no config.json; it is {other[0]}") from error
        raise ValueError(
            f"{path}: expected the config of a Hugging Face model, cannot read it: {error}"
        ) from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, the config of a model, got {raw!r:.80}")
    family = registry.check_family(raw, str(path))
    check_numbers(raw, str(path))
    try:
        full = _filled_in(folder, raw, family)
    except Exception as error:
        raise ValueError(f"{path}: transformers cannot read this config: {error}") from error
    return registry.read_config(full, str(path))


def _filled_in(folder: pathlib.Path, raw: dict[str, Any], family: str) -> dict[str, Any]:
    """The text model's fields; what config.json leaves out is as transformers has it."""
    with torch_later():
        from transformers import CONFIG_MAPPING, AutoConfig

        name = raw.get("model_type")
        if name in CONFIG_MAPPING:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            return config.get_text_config().to_dict()
        if text_config(raw) is raw:  # Kimi K2, which transformers has under its family's name.
            return CONFIG_MAPPING[family].from_dict(raw).to_dict()
    raise ValueError(
        f"it knows no model_type {name!r}, and the model's own code is not run: name a checkpoint "
        f"of its text model alone, whose model_type is {family!r}"
    )


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
    try:
        if (whole := folder / "tokenizer.json").is_file():
            check_file(whole)
        with torch_later():
            import transformers

            if _own_tokenizer(folder, transformers):
                tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
            else:
                # Where mistral-common is installed, a tokenizer of its own would stand in.
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, mistral_format=False
                )
        # Multimodal models may keep it here, where transformers reads it for their processor alone.
        for name in ("chat_template.json", "processor_config.json"):
            path = folder / name
            if tokenizer.chat_template is None and path.is_file():
                held = json.loads(path.read_text())
                if name == "chat_template.json" or "chat_template" in held:
                    tokenizer.chat_template = held["chat_template"]
    except BaseException as error:
        # Of a damaged file any; that of a panic in the tokenizers package is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = repr(error) if isinstance(error, KeyError) else error
        way = "copy its tokenizer files again"
        if not (folder / "tokenizer.json").is_file():
            way = (
                "it has no tokenizer.json; where the packages of the model's own tokenizer are "
                "installed (sentencepiece, tiktoken), AutoTokenizer.from_pretrained(FOLDER)"
                ".save_pretrained(FOLDER) makes one"
            )
        raise ValueError(f"{folder}: its tokenizer cannot be loaded: {said}: {way}") from error
    return tokenizer


def _own_tokenizer(folder: pathlib.Path, transformers: Any) -> bool:
    """Whether the tokenizer's class is code of the model's own; tokenizer.json does without it."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    name = settings.get("tokenizer_class")
    own = bool(settings.get("auto_map") and name) and not hasattr(transformers, str(name))
    if own and not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{name} is the model's own code, which is not run: put a tokenizer.json of the same "
            f"tokens beside tokenizer_config.json"
        )
    return own
