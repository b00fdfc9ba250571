"""What capture is measured against where the checkpoint is GGUF: llama.cpp's prompt processing."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Prompts that llama.cpp works on side by side, and tokens of a batch.
_SLOTS = 4
_BATCH = 2048


class LlamaCpp:
    """llama.cpp's embeddings of token rows: the final states' mean, no other state is kept.

    Args:
      path: A GGUF file.
      n_threads: Of the products.
      max_tokens: Of the longest prompt.
      tokenize: The token ids of some queries; its time counts.
    """

    def __init__(
        self,
        path: str,
        n_threads: int,
        max_tokens: int,
        tokenize: Callable[[Sequence[Any]], Sequence[np.ndarray]],
    ):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.embd_normalize = -1
        params.n_batch = params.n_ubatch = _BATCH
        params.n_parallel = _SLOTS
        params.n_ctx = _SLOTS * max_tokens
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
        # Otherwise prompts of a batch are read in steps of equal length and the mean is the last's;
        # and a prompt that begins as an earlier one is read, and pooled, from there on alone.
        params.kv_unified = True
        params.cache_prompt = False
        params.verbosity = 0
        self._server = xllamacpp.Server(params)
        self._tokenize = tokenize

    def mean_of_final(self, texts: Sequence[Any]) -> np.ndarray:
        """[N, D] float32 mean over tokens of the final states."""
        rows = [row.tolist() for row in self._tokenize(texts)]
        answer = self._server.handle_embeddings({"input": rows})
        if "data" not in answer:
            raise RuntimeError(f"llama.cpp: {answer}")
        found = sorted(answer["data"], key=lambda one: one["index"])
        return np.array([one["embedding"] for one in found], np.float32)
