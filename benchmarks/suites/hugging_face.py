"""What capture is measured against: Hugging Face's model in torch, as published and at its best."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Of a batch of torch's best, padding included.
_ROWS = 32
_CPU_TOKENS = 2048


class HuggingFace:
    """A model read by torch.

    Args:
      folder: Config, tokenizer and weights, or a GGUF file.
      dtype: "float32" or "bfloat16".
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
        model = AutoModel.from_pretrained(path, dtype=getattr(torch, dtype), **gguf)
        self.model = model.to(self._device).eval()

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

    def best(self, texts: Sequence[str]) -> np.ndarray:
        """Sorted by length, the longest first, pooled as whole tensors on the device.

        Batches have 32 rows; on a CPU, where they gain nothing by size, fewer where the rows are
        long.

        Returns:
          h_NLPD, rows as given.
        """
        import torch

        lengths = [len(ids) for ids in self._tokenize(texts)]
        order = np.argsort(lengths, kind="stable")[::-1]
        out_NLPD: np.ndarray | None = None
        start = 0
        while start < len(texts):
            most = _CPU_TOKENS // lengths[order[start]] if self._device == "cpu" else _ROWS
            rows = order[start : start + max(1, min(_ROWS, most))]
            start += len(rows)
            states, lengths_B = self._states([texts[i] for i in rows])
            at_B = torch.arange(len(rows), device=self._device)
            length_B1 = lengths_B[:, None]
            real_BT = torch.arange(states[0].shape[1], device=self._device)[None] < length_B1
            pooled = []
            for x_BTD in states:
                mean_BD = (x_BTD * real_BT[..., None]).sum(1, dtype=torch.float32) / length_B1
                pooled.append(torch.stack([x_BTD[at_B, lengths_B - 1].float(), mean_BD], 1))
            h_BLPD = torch.stack(pooled, 1).cpu().numpy()
            if out_NLPD is None:
                out_NLPD = np.empty((len(texts), *h_BLPD.shape[1:]), np.float32)
            out_NLPD[rows] = h_BLPD
        assert out_NLPD is not None
        return out_NLPD

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
