"""What the checkpoints of both neighbours share: whether a router maps, its layers, the file.

Switchyard and the blueprint read hidden states with Hugging Face's transformers, project them, run
the members of an ensemble and take the mean of their sigmoids. A router maps where its own steps
are these; one that does not is refused with all reasons, and with the recipe that does.
"""

import importlib
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from routerjax.encoder.encoder import Encoder
from routerjax.routing.router import Router
from routerjax.runtime.files import Folder

# A query in which tokenizers and templates show what they do; its tokens are compared.
_PROBE = "What is 17 * 23?"


def checked(
    router: Router, name: str, reasons: list[str], uncalibrated: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Factor and shift [M] of the logits that stand for the calibration; what the file leaves out.

    Args:
      router: The router.
      name: Of the format.
      reasons: Why the router does not map, as far as is known.
      uncalibrated: As in `switchyard`.

    Raises:
      ValueError: The router does not map; names all reasons.
    """
    if len(router.trunk.hidden) != 2:
        reasons.append(
            f"trunk: the format has two hidden layers, the router {len(router.trunk.hidden)}: "
            f"train with TrunkConfig(hidden=(256, 128))"
        )
    if router.kernel is not None:
        reasons.append(
            "kernel: the format has no kernel regression: train with TrunkConfig(kernel=False) "
            "(--trunk=published)"
        )
    scale_M, shift_M = np.ones(len(router.targets)), np.zeros(len(router.targets))
    curves, methods = router.calibration.curves, router.calibration.methods
    calibrated = ", ".join(
        f"{target} by {method}"
        for target, method in zip(router.targets, methods, strict=True)
        if method != "none"
    )
    notes = []
    if router.trunk.n_members == 1 and "isotonic" not in methods:
        scale_M = np.array([curve.slope for curve in curves])
        shift_M = np.array([curve.shift for curve in curves])
    elif calibrated and uncalibrated:
        notes.append(
            f"The file holds uncalibrated probabilities; the router calibrates {calibrated}."
        )
    elif calibrated:
        reasons.append(
            f"calibration: the router calibrates {calibrated}, and the format takes the mean of "
            f"{router.trunk.n_members} sigmoids as it is: leave the calibration out with "
            f"uncalibrated=True (--uncalibrated), or train a single member (--members=1), into "
            f"whose last layer temperature and platt are folded"
        )
    if router.trust is not None and uncalibrated:
        notes.append(
            "The file holds no trust: on queries unlike the training's its targets differ as the "
            "ensemble says, where the router's differ as on average."
        )
    elif router.trust is not None:
        reasons.append(
            "trust: the format has none: leave it out with uncalibrated=True (--uncalibrated), or "
            "train with fit_router(trust=False) (--notrust)"
        )
    if not reasons:
        reasons = _of_encoder(router.encoders[0])
    if reasons:
        refuse(name, reasons)
    identity = router.encoder_identities[0]
    if identity["revision"] is not None:
        notes.append(
            f"The file names the encoder {identity['encoder_id']} without its revision "
            f"{identity['revision']}."
        )
    return scale_M, shift_M, notes


def refuse(name: str, reasons: Sequence[str]) -> NoReturn:
    """Raises the ValueError that names a format and why a router does not map onto it."""
    raise ValueError("\n- ".join([f"{name}: this router does not map onto the format:", *reasons]))


def _of_encoder(encoder: Encoder) -> list[str]:
    """Why transformers would not read what the encoder reads; empty where it would."""
    prompter, name = encoder.prompter, str(encoder.identity["encoder_id"])
    folder = pathlib.Path(name)
    if encoder.config.bidirectional:
        return [f"encoder: {name} sees later tokens too; the readers load causal language models"]
    if name.endswith(".gguf") or (folder.is_dir() and not any(folder.glob("*.safetensors"))):
        return [f"encoder: {name} is GGUF; the readers load safetensors: extract with those"]
    if not prompter.templated:
        return [f"encoder: {name} has no chat template, in which the readers put every query"]
    theirs, ours = _tokens_of_readers(encoder), prompter([_PROBE]).tokens[0].tolist()
    if theirs == ours:
        return []
    return [
        f"encoder: the readers render the chat template and tokenise the text again, which for "
        f"{name} gives {len(theirs)} tokens where the states were extracted from {len(ours)} "
        f"others (a second BOS, or today's date in the template): take an encoder whose tokenizer "
        f"adds no BOS, such as Qwen's"
    ]


def _tokens_of_readers(encoder: Encoder) -> list[int]:
    """What the readers make of the probe; none where the template takes no plain text."""
    tokenizer = encoder.prompter.tokenizer
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _PROBE}],
            tokenize=False,
            add_generation_prompt=True,
            **(encoder.identity["chat_template_kwargs"] or {}),
        )
    except Exception:  # Templates raise what they like.
        return []
    return tokenizer(text)["input_ids"]


def linears(
    router: Router, k: int, scale_M: np.ndarray, shift_M: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight [out, in], bias [out]) of each layer of member k, the calibration in the last."""
    params = router.trunk.params
    layers = [(params[f"{i}.kernel"][k].T, params[f"{i}.bias"][k]) for i in range(len(params) // 2)]
    weight_MH, bias_M = layers[-1]
    layers[-1] = weight_MH * scale_M[:, None], bias_M * scale_M + shift_M
    return [(np.array(w, np.float32, order="C"), np.array(b, np.float32)) for w, b in layers]


def in_words(router: Router) -> str:
    """What a router reads, for errors."""
    features = router.features
    sites = [site for part in features.parts for site in part.sites]
    poolings = " and ".join(dict.fromkeys(pooling for _, pooling in sites))
    of = f" of {features.n_encoders} encoders" if features.n_encoders > 1 else ""
    states = "state" if len(sites) == 1 else "states"
    return f"{len(sites)} pooled {states}{of} (pooling {poolings}, recipe {features.recipe.kind})"


def package(name: str) -> Any:
    """A module of torch or scikit-learn, which only these formats need."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"this format is written with torch and scikit-learn, and {name} cannot be imported: "
            f"run `pip install -e '.[export]'` ({error})"
        ) from error


def write(path: Any, checkpoint: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    folder, slash, name = os.fspath(path).rpartition("/")
    if not name:
        raise ValueError(f"path: expected that of a file, such as router.pt, got {path!r}")
    buffer = io.BytesIO()
    package("torch").save(checkpoint, buffer)
    Folder(folder + slash or ".").write_bytes(name, buffer.getvalue())
