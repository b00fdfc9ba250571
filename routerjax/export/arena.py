"""router_arena: a router's choices as the files that a RouterArena submission holds."""

import pathlib
from typing import Any

from routerjax.data.sources.files import json_objects
from routerjax.routing.policy import Policy
from routerjax.routing.router import Router
from routerjax.runtime.files import Folder

# Queries routed together.
_CHUNK = 256


def router_arena(
    router: Router,
    queries: Any,
    path: Any,
    name: str,
    *,
    policy: Policy | None = None,
    optimality: Any = None,
    robustness: Any = None,
) -> list[str]:
    """Routes RouterArena's queries and writes config and predictions for its evaluation.

    The files are those of its repository: router_inference/config/NAME.json, predictions/NAME.json
    beside it and, with `robustness`, predictions/NAME-robustness.json. Answers, costs and
    accuracies are null: RouterArena's own inference fills them in.

    Args:
      router: The router. RouterArena asks that it was trained on none of its data, and that the
        targets have the names of its universal_model_names.py.
      queries: Its data set, a JSON list or JSON lines of objects with "global index" and
        "prompt_formatted" or "prompt".
      path: Its checkout, or another folder, local or a URL.
      name: Of the submission and of its files, without spaces.
      policy: Instead of the router's own.
      optimality: Those of `queries` (its part sub_10) for which a row of every other target is
        wanted too, from which it judges whether choices were the best; a file like `queries`.
      robustness: A file of perturbed prompts like `queries`.

    Returns:
      The paths that were written.

    Raises:
      ValueError: A name has a space, or a file is not as described; names file and line.
      OSError: A file cannot be read or written, or the encoder not be loaded.

    Example:
      >>> rj.export.router_arena(router, "dataset/router_data.json", ".", "my-router",
      ...                        optimality="dataset/router_data_10.json")
    """
    for what, text in (("name", name), *(("target", target) for target in router.targets)):
        if not text or any(map(str.isspace, text)) or (what == "name" and "/" in text):
            raise ValueError(f"{what}: RouterArena takes no spaces in names, got {text!r}")
    rows = _routed(router, _read(queries), policy)
    if optimality is not None:
        chosen = {row["global index"]: row["prediction"] for row in rows}
        for index, prompt in _read(optimality).items():
            if index not in chosen:
                raise ValueError(f"optimality: {index!r} of {optimality} is not among {queries}")
            others = [target for target in router.targets if target != chosen[index]]
            rows += [_row(index, prompt, target, for_optimality=True) for target in others]
    files = {f"predictions/{name}.json": rows}
    if robustness is not None:
        files[f"predictions/{name}-robustness.json"] = _routed(router, _read(robustness), policy)
    config = {"pipeline_params": {"router_name": name, "models": router.targets}}
    folder = Folder(path)
    written = []
    for file, value in (files | {f"config/{name}.json": config}).items():
        folder.write_json(f"router_inference/{file}", value)
        written.append(f"{folder.path}router_inference/{file}")
    return written


def _read(path: Any) -> dict[str, str]:
    """The prompts of a file by their global index."""
    prompts: dict[str, str] = {}
    for where, value in json_objects(pathlib.Path(path)):
        index = value.get("global index")
        prompt = value.get("prompt_formatted") or value.get("prompt")
        if not isinstance(index, str) or not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(
                f'{where}: expected "global index" and "prompt_formatted" or "prompt", two texts, '
                f"got {index!r} and {prompt!r:.60} among {', '.join(map(repr, value))}"
            )
        if index in prompts:
            raise ValueError(f"{where}: the global index {index!r} has come before")
        prompts[index] = prompt
    return prompts


def _routed(router: Router, prompts: dict[str, str], policy: Policy | None) -> list[dict[str, Any]]:
    """A row for each prompt, with the target that the router chooses."""
    items, rows = list(prompts.items()), []
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]
        decisions = router.route([prompt for _, prompt in chunk], policy)
        rows += [
            _row(index, prompt, decision.target)
            for (index, prompt), decision in zip(chunk, decisions, strict=True)
        ]
    return rows


def _row(index: str, prompt: str, target: str, for_optimality: bool = False) -> dict[str, Any]:
    return {
        "global index": index,
        "prompt": prompt,
        "prediction": target,
        "generated_result": None,
        "cost": None,
        "accuracy": None,
        "for_optimality": for_optimality,
    }
