"""What capture is measured against: Hugging Face's model in torch, as published and at its best."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class HuggingFace:
    """A model folder without a chat template, read by torch.

    Args:
      folder: Config, tokenizer and weights.
      dtype: "float32" or "bfloat16".
      max_tokens: Where longer queries are cut.
    """

    def __init__(self, folder: str, dtype: str, max_tokens: int):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._tokenizer.padding_side = "right"
        model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = model.to(self._device).eval()
        self._max_tokens = max_tokens

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

    def best(self, texts: Sequence[str], batch: int = 32) -> np.ndarray:
        """Sorted by length, batches of 32, pooled as whole tensors on the device.

        Returns:
          h_NLPD, rows as given.
        """
        import torch

        lengths = [len(ids) for ids in self._tokenizer(list(texts))["input_ids"]]
        order = np.argsort(lengths, kind="stable")[::-1]
        out_NLPD: np.ndarray | None = None
        for start in range(0, len(texts), batch):
            rows = order[start : start + batch]
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

        batch = self._tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True,
                                max_length=self._max_tokens).to(self._device)  # fmt: skip
        with torch.inference_mode():
            states = self.model(**batch, output_hidden_states=True).hidden_states
        return states, batch["attention_mask"].sum(1)


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
