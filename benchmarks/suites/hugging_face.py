"""What capture is measured against: Hugging Face's model in torch, as published and at its best."""

import itertools
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Rows of a batch of torch's best on a GPU, which was not tuned.
_ROWS = 32
# What is tried on a CPU for each class of lengths: tokens of a batch, padding included.
_CPU_TOKENS = (256, 1024, 4096)
_MOST_ROWS = 64
_LEAST_CLASS = 16


class Setting(NamedTuple):
    """How torch reads prompts of some length."""

    rows: int
    threads: int


class HuggingFace:
    """A model read by torch.

    Args:
      folder: Config, tokenizer and weights, or a GGUF file.
      dtype: "float32" or "bfloat16"; of float8 also bfloat16.
      max_tokens: Where longer queries are cut.
      tokenize: The token ids of some queries, for a model whose prompts are not the bare queries;
        None for the folder's tokenizer.
    """

    def __init__(
        self,
        folder: str,
        dtype: str,
        max_tokens: int,
        tokenize: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    ):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        path, gguf = pathlib.Path(folder), {}
        if path.suffix == ".gguf":
            path, gguf = path.parent, {"gguf_file": path.name}
        if tokenize is None:
            tokenizer = AutoTokenizer.from_pretrained(path, **gguf)

            def tokenize(texts: Sequence[Any]) -> Sequence[Any]:
                return tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]

        self._tokenize = tokenize
        dtype = "bfloat16" if dtype == "float8" else dtype
        model = AutoModel.from_pretrained(path, dtype=getattr(torch, dtype), **gguf)
        self.model = model.to(self._device).eval()
        # By the longest length of a class.
        self.settings: dict[int, Setting] = {}

    def published(self, texts: Sequence[str]) -> np.ndarray:
        """Batches of 4 in file order, every state kept, pooled row by row on the host.

        Returns:
          h_NLPD, last and mean of all states.
        """
        import torch

        pooled = []
        for start in range(0, len(texts), 4):
            states, lengths_B = self._states(texts[start : start + 4])
            for row, length in enumerate(lengths_B.tolist()):
                real = [state[row, :length].float() for state in states]
                rows_LP = [torch.stack([h[-1], h.mean(0)]) for h in real]
                pooled.append(torch.stack(rows_LP).cpu().numpy())
        return np.stack(pooled)

    def tune(self, texts: Sequence[str]) -> None:
        """Finds the rows of a batch and the threads with which a CPU reads each length fastest.

        Lengths are taken by powers of two; of each class its longest text is read, as often as a
        batch has rows.
        """
        if self._device != "cpu":
            return
        longest: dict[int, str] = {}
        lengths = [len(ids) for ids in self._tokenize(texts)]
        for i in np.argsort(lengths, kind="stable"):
            longest[_class_of(lengths[i])] = texts[i]
        cores = os.cpu_count() or 1
        threads = sorted({1, max(1, cores // 2), cores})
        for length, text in longest.items():
            most = min(_MOST_ROWS, len(texts))
            rows = sorted({max(1, min(n // length, most)) for n in _CPU_TOKENS})
            tried = itertools.starmap(Setting, itertools.product(rows, threads))
            self.settings[length] = min(tried, key=lambda one: self._seconds(one, text))

    def best(self, texts: Sequence[str]) -> np.ndarray:
        """Sorted by length, the longest first, pooled as whole tensors on the device.

        On a CPU with the settings that `tune` found; before it all threads, and few rows of long
        prompts.

        Returns:
          h_NLPD, rows as given.
        """
        import torch

        threads = torch.get_num_threads()
        lengths = [len(ids) for ids in self._tokenize(texts)]
        order = np.argsort(lengths, kind="stable")[::-1]
        out_NLPD: np.ndarray | None = None
        start = 0
        while start < len(texts):
            setting = self._setting(lengths[order[start]])
            rows = order[start : start + setting.rows]
            start += len(rows)
            torch.set_num_threads(setting.threads)
            h_BLPD = self._pooled([texts[i] for i in rows])
            if out_NLPD is None:
                out_NLPD = np.empty((len(texts), *h_BLPD.shape[1:]), np.float32)
            out_NLPD[rows] = h_BLPD
        torch.set_num_threads(threads)
        assert out_NLPD is not None
        return out_NLPD

    def _setting(self, length: int) -> Setting:
        """For a batch whose longest prompt has this length."""
        import torch

        if self._device != "cpu":
            return Setting(_ROWS, torch.get_num_threads())
        few = Setting(max(1, min(_ROWS, 2048 // length)), torch.get_num_threads())
        return self.settings.get(_class_of(length), few)

    def _seconds(self, setting: Setting, text: str) -> float:
        """Of a row, in a batch of this text; the better of two."""
        import torch

        threads, took = torch.get_num_threads(), []
        torch.set_num_threads(setting.threads)
        for _ in range(2):
            before = time.perf_counter()
            self._pooled([text] * setting.rows)
            took.append(time.perf_counter() - before)
        torch.set_num_threads(threads)
        return min(took) / setting.rows

    def _pooled(self, texts: Sequence[str]) -> np.ndarray:
        """h_BLPD of one batch, last and mean of all states."""
        import torch

        states, lengths_B = self._states(texts)
        at_B = torch.arange(len(texts), device=self._device)
        length_B1 = lengths_B[:, None]
        real_BT = torch.arange(states[0].shape[1], device=self._device)[None] < length_B1
        pooled = []
        for x_BTD in states:
            mean_BD = (x_BTD * real_BT[..., None]).sum(1, dtype=torch.float32) / length_B1
            pooled.append(torch.stack([x_BTD[at_B, lengths_B - 1].float(), mean_BD], 1))
        return torch.stack(pooled, 1).cpu().numpy()

    def _states(self, texts: Sequence[str]) -> tuple[Any, Any]:
        import torch

        rows = [torch.as_tensor(row, dtype=torch.long) for row in self._tokenize(texts)]
        lengths_B = torch.tensor([len(row) for row in rows])
        ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._device)
        mask_BT = torch.arange(ids_BT.shape[1])[None] < lengths_B[:, None]
        mask = mask_BT.long().to(self._device)
        with torch.inference_mode():
            states = self.model(ids_BT, mask, output_hidden_states=True).hidden_states
        return states, lengths_B.to(self._device)


def _class_of(length: int) -> int:
    """The longest length of its class: a power of two."""
    return max(_LEAST_CLASS, 1 << (length - 1).bit_length())


def one_query(
    folder: str, dtype: str, max_tokens: int, arrays: dict[str, np.ndarray], trunk: Any,
    layers: Sequence[int], pooling: str,
) -> Callable[[str], np.ndarray]:  # fmt: skip
    """The published scorer's way of one query: tokenise, all states, pool, scale, PCA, trunks.

    Args:
      folder: Of the encoder.
      dtype: It computes in.
      max_tokens: Where longer queries are cut.
      arrays: mean_SD, scale_SD, components_SDC of the features.
      trunk: Parameters of the members, a list of (kernel [K, in, out], bias [K, out]).
      layers: Hidden states that are read.
      pooling: "last" or "mean".

    Returns:
      A function from a text to P(correct) [M].
    """
    import torch

    encoder = HuggingFace(folder, dtype, max_tokens)
    mean, scale = (torch.tensor(arrays[name]).flatten() for name in ("mean_SD", "scale_SD"))
    components = torch.tensor(arrays["components_SDC"]).flatten(0, 1)
    members = [
        [(torch.from_numpy(kernel[k]), torch.from_numpy(bias[k])) for kernel, bias in trunk]
        for k in range(len(trunk[0][0]))
    ]
    place = 0 if pooling == "last" else 1

    def score(text: str) -> np.ndarray:
        h_LPD = torch.from_numpy(encoder.published([text])[0])
        x = (h_LPD[list(layers), place].flatten() - mean) / scale @ components
        with torch.inference_mode():
            scores = []
            for member in members:
                y = x
                for i, (kernel, bias) in enumerate(member):
                    y = y @ kernel + bias
                    y = torch.relu(y) if i < len(member) - 1 else torch.sigmoid(y)
                scores.append(y)
            return torch.stack(scores).mean(0).numpy()

    return score
