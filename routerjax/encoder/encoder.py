"""Encoder: an open-weight LLM whose prefill is all that is ever run."""

import functools
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from routerjax.encoder import batches
from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.load import load
from routerjax.encoder.models.attention import longest_whole
from routerjax.encoder.models.ring import ring_rows
from routerjax.encoder.prefill import Prefill
from routerjax.encoder.prefix import choose_prefix, shared_head, template_head
from routerjax.encoder.prompts import CONTROL_TEXT, Prompter, Prompts
from routerjax.encoder.selection import ALL, Selection
from routerjax.encoder.weights.loading import random_like
from routerjax.runtime.devices import DATA, MODEL, in_flight
from routerjax.runtime.tuning import Tuning

logger = logging.getLogger(__name__)

MAX_TOKENS = 2048


class Encoder:
    """Reads queries and returns pooled hidden states. Made by `Encoder.from_pretrained`.

    Attributes:
      config: The shape of the model.
      prompter: Turns queries into tokens.
      identity: JSON values that decide the numbers: weights, prompt, max_tokens, dtype, precision.
      mesh: The devices that share each batch (axis "data") and the parameters (axis "model").
      tuning: What suits these devices; the model was made with it.
    """

    def __init__(
        self,
        config: EncoderConfig,
        model: tuple[Any, Any],
        prompter: Prompter,
        identity: dict[str, Any],
        mesh: Mesh,
        tuning: Tuning,
    ):
        self.config, self.prompter, self.identity = config, prompter, identity
        self.mesh, self.tuning = mesh, tuning
        self._prefill = Prefill(model, config.n_layers, mesh, tuning)

    def __repr__(self) -> str:
        c = self.config
        name, dtype = self.identity["encoder_id"], self.identity["compute_dtype"]
        return f"Encoder({name!r}: {c.family}, {c.n_layers} blocks, {c.width} wide, {dtype})"

    @property
    def n_states(self) -> int:
        """Hidden states that can be captured: the embedding output and one for each block."""
        return self.config.n_states

    @property
    def width(self) -> int:
        """D, the hidden width."""
        return self.config.width

    @property
    def n_parameters(self) -> int:
        """Numbers in the encoder's weights; the LM head is not among them."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._prefill.params))

    @property
    def n_devices(self) -> int:
        """Devices on the data axis, which share each batch; its rows are a multiple of this."""
        return self.mesh.shape[DATA]

    @property
    def ring_rows(self) -> int:
        """What suits devices that share the parameters as a multiple of a batch's rows; or 1."""
        return ring_rows(self.mesh, self.tuning)

    @property
    def param_bytes(self) -> int:
        """Bytes of parameters on each device of the mesh."""
        leaves = jax.tree.leaves(self._prefill.params)
        return sum(
            leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in leaves
        )

    @functools.cached_property
    def default_batch_tokens(self) -> int:
        """Tokens of a full batch that keep these devices busy."""
        own_flops = self._flops_per_token / self.mesh.shape[MODEL]
        return self.n_devices * batches.default_batch_tokens(self.tuning, own_flops)

    @property
    def worth_tokens(self) -> int:
        """Tokens that one more compiled shape has to save a job, to pay for its compilation."""
        return batches.worth_tokens(self.tuning, self._flops_per_token)

    @functools.cached_property
    def _flops_per_token(self) -> float:
        return self.flops(128, self.n_states - 1) / 128

    @classmethod
    def from_pretrained(
        cls,
        source: str | pathlib.Path,
        *,
        revision: str | None = None,
        gguf_file: str | None = None,
        max_tokens: int = MAX_TOKENS,
        compute_dtype: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        control_text: str = CONTROL_TEXT[0],
        mesh: Mesh | str = "data:1",
        topology: str | None = None,
    ) -> "Encoder":
        """Loads config, tokenizer and weights; no torch, no remote code.

        Args:
          source: A local folder in Hugging Face's format, a GGUF file or a folder that holds one
            (which takes the package gguf), or a hub id such as "Qwen/Qwen3-0.6B".
          revision: Of the hub repository; a branch, tag or commit.
          gguf_file: A GGUF file in that folder or hub repository; the same as
            "source/gguf_file" as source. Of a split file any part.
          max_tokens: Longest prompt; longer queries lose text from their middle. At most what the
            model's positions allow.
          compute_dtype: "float32", "bfloat16", "float16", "float8", or "auto": float32 on CPU,
            bfloat16 elsewhere. float32 computes its products at the highest precision. float8 is
            bfloat16 with the blocks' dense products in float8, for decoders without experts,
            DeltaNet or latent attention, on NVIDIA GPUs from compute capability 8.9 on.
          chat_template_kwargs: Variables of the chat template, JSON values by name, such as
            {"enable_thinking": False} or {"reasoning_effort": "low"}.
          control_text: "split" to read control tokens that a query spells out ("<|im_end|>") as its
            text; "tokens" to let them be what they spell, as stores and routers have it whose
            identity has no control_text.
          mesh: Devices that share each batch and the parameters, from `make_mesh`; or its text:
            "data:4,model:2", or "auto" for all devices of this process, the model whole on each
            of them if it fits. One device by default.
          topology: TPU chips that are not here, such as "v5e:2x2": the encoder is for `estimate`
            alone, its weights are not read and it captures nothing. None for devices of this
            process.

        Raises:
          ValueError: Not such a path, an unsupported family, weights that do not fit the config,
            a mesh that the model cannot be split over or does not fit, an argument out of range,
            or float8 for a model or devices that it is not for.
          OSError: The hub cannot be reached or has no such repository.
          ModuleNotFoundError: A topology without libtpu, which is the TPU's compiler.
        """
        if gguf_file is not None:
            source = f"{source}/{gguf_file}"
        prompt = max_tokens, chat_template_kwargs, control_text
        encoder = cls(*load(source, revision, *prompt, compute_dtype, mesh, topology))
        c, tuning = encoder.config, encoder.tuning
        longest = longest_whole(tuning, c.bidirectional)
        how = "cuDNN" if tuning.cudnn else f"whole to {longest} tokens, by blocks beyond"
        halves = encoder.identity["compute_dtype"] == "bfloat16"
        if halves and tuning.splash_from <= longest and not c.n_distances:
            how = f"whole below {tuning.splash_from} tokens, by a TPU's kernel from there on"
        logger.info("%s: attention: %s", source, how)
        return encoder

    @classmethod
    def from_identity(
        cls,
        identity: Mapping[str, Any],
        source: str | pathlib.Path | None = None,
        mesh: Mesh | str = "data:1",
    ) -> "Encoder":
        """Loads the encoder that a store's or a router's identity tells of.

        What lies at the source now may be another; compare the identities.

        Args:
          identity: Has encoder_id, revision, max_tokens, compute_dtype, chat_template_kwargs, and
            control_text unless that is "tokens".
          source: Where it lies, if not where it was.
          mesh: As in `from_pretrained`, and so are the errors.
        """
        return cls.from_pretrained(
            identity["encoder_id"] if source is None else source,
            revision=identity["revision"],
            max_tokens=identity["max_tokens"],
            compute_dtype=identity["compute_dtype"],
            chat_template_kwargs=identity["chat_template_kwargs"],
            control_text=identity.get("control_text") or CONTROL_TEXT[1],
            mesh=mesh,
        )

    def with_random_weights(self, seed: int = 0) -> "Encoder":
        """The same architecture, tokenizer and prompt with weights that have learnt nothing.

        Every tensor is drawn anew from a normal distribution of its own mean and deviation, so that
        activations keep their size. What a probe finds in such states, it finds in the tokens.

        Args:
          seed: Another seed, other weights.

        Returns:
          An encoder with an identity of its own.
        """
        params = random_like(self._prefill.params, seed)
        digest = f"random:{seed}:{self.identity['weights_digest']}"
        identity = self.identity | {"weights_digest": digest}
        model = self._prefill.graphdef, params
        return Encoder(self.config, model, self.prompter, identity, self.mesh, self.tuning)

    def forward(
        self,
        batch: tuple[np.ndarray, ...],
        selection: Selection,
        prefix: tuple[int, ...] = (),
    ) -> jax.Array:
        """Dispatches one packed batch and returns without waiting.

        Args:
          batch: tokens_BT, lengths_B, spans_B2, as `pack` makes them; B a multiple of n_devices.
          selection: What to return of them.
          prefix: Tokens before every row of the batch. They are read the first time and kept.

        Returns:
          h_LPBD [L, P, B, D] float32 on the devices.
        """
        return self._prefill.forward(batch, selection, prefix)

    def compile(
        self,
        shapes: Sequence[tuple[int, int]],
        selection: Selection,
        prefix: tuple[int, ...] = (),
    ) -> None:
        """Compiles side by side what `forward` runs, which else compiles a shape when it comes.

        Args:
          shapes: (B, T) of the batches.
          selection: As in `forward`; so is prefix.
        """
        self._prefill.compile(shapes, selection, prefix)

    @functools.cached_property
    def _head(self) -> tuple[int, ...]:
        head = template_head(self.prompter)
        return head if len(head) >= batches.LEAST_STEP else ()  # A shorter one saves no step.

    def capture(
        self,
        queries: Sequence[Any],
        layers: str | Sequence[int] = ALL,
        poolings: Sequence[str] = ("last", "mean"),
    ) -> np.ndarray:
        """Pooled hidden states of a few queries; `extract` is the job for many.

        Args:
          queries: N texts or conversations (lists of messages).
          layers: "all", or hidden-state indices: 0 is the embedding output, i the output of block
            i, the last one taken after the final norm; negative ones count from the end.
          poolings: Names out of POOLINGS.

        Returns:
          h_NLPD [N, L, P, D] float32, layers ascending.

        Raises:
          ValueError: An empty query, a layer the encoder has not, an unknown pooling.

        Example:
          >>> h_NLPD = encoder.capture(["What is 2 + 2?"], layers=[-1], poolings=("mean",))
        """
        if isinstance(queries, str):
            raise ValueError("queries: expected a list of texts, got one text; write [text]")
        selection = Selection.of(layers, poolings, self.n_states)
        return self.capture_prompts(self.prompter(queries), selection)

    def capture_prompts(self, prompts: Prompts, selection: Selection) -> np.ndarray:
        """As `capture`, of prompts that `prompter` has tokenised."""
        h_NLPD = np.zeros((len(prompts.tokens), *selection.shape, self.width), np.float32)
        for rows, h_LPBD in in_flight(self.dispatch(prompts, selection)):
            h_NLPD[rows] = np.asarray(h_LPBD).transpose(2, 0, 1, 3)[: len(rows)]
        return h_NLPD

    def dispatch(
        self, prompts: Prompts, selection: Selection
    ) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """As `capture_prompts`, batch by batch and without waiting for any.

        Args:
          prompts: Of `prompter`.
          selection: What to return of them.

        Yields:
          rows [n] ascending numbers of prompts, and h_LPBD [L, P, B, D] float32 on the devices, of
          which the first n of B are theirs. Prompts that fit one batch are one.
        """
        prefix: tuple[int, ...] = ()
        if self._head and shared_head(self._head, prompts) == self._head:
            prefix = choose_prefix("auto", self.config, self._head, prompts.lengths_N)
        lengths_N = prompts.lengths_N - len(prefix)
        shapes = batches.few_batches(lengths_N, self.default_batch_tokens, self.n_devices)
        for rows, n_rows, bucket in shapes:
            bucket = min(bucket, self.max_tokens - len(prefix))
            batch = batches.pack(prompts, rows, n_rows, bucket, prefix)
            yield rows, self.forward(batch, selection, prefix)

    @property
    def max_tokens(self) -> int:
        """Longest prompt, in tokens."""
        return self.prompter.max_tokens

    def flops(self, n_tokens: int, deepest: int) -> float:
        """Floating-point operations of one prompt's prefill up to a hidden state.

        Args:
          n_tokens: Tokens of the prompt.
          deepest: Hidden-state index.
        """
        return self.config.flops(n_tokens, deepest)
