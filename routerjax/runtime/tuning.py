"""Tuning: every number and choice that depends on the kind of device, chosen in one place."""

import dataclasses
import sys
from collections.abc import Sequence

import jax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What suits one kind of device. Nothing else in the library asks which platform it runs on.

    Equal instances have equal hashes: a model carries its Tuning into a compiled program as a
    static value, and two encoders of one kind share their programs. The defaults are those of a
    host's cores; most numbers were measured on two.

    Attributes:
      compute_dtype: Of an encoder for which "auto" was asked.
      attention_scores: Scores of attention that are held at a time. 2^21 (8 MiB of float32) stay
        in a CPU's cache, at 512 tokens 3 times as fast as all at once; 2^28 (1 GiB) fill a GPU.
      unrolled_head_chunks: Chunks of heads up to which attention is unrolled. A loop on a CPU
        copies the heads that it takes and those that it leaves.
      longest_causal: Tokens up to which a head's causal scores are computed whole; longer prompts
        go tile by tile. On a CPU half of the tiles are skipped, which nearly halves the time of 512
        tokens; 256 tokens take as long either way.
      longest_bidirectional: The same where tokens see both ways and no tile can be skipped.
      attention_tile: Tokens of a tile of queries, and of keys. 128 keep a CPU's scores and values
        in its cache: 512 causal tokens take half to two thirds of the time of whole scores, 2,048 a
        fifth.
      cudnn: Whether cuDNN attends. Of 18.4 ms for 8,160 tokens of Qwen3-0.6B's shape on an H200 it
        takes 2.1; without it the prefill reached 344 instead of 429 TFLOP/s.
      cudnn_head_dim: Channels of the widest head that cuDNN takes: 128, from Hopper on 256.
      splash_from: Tokens from which JAX's splash attention attends, a TPU's kernel, in tiles of
        `attention_tile`: XLA writes scores and weights to memory and reads them again.
      rotates_by_product: Whether a rotation takes each channel's partner from a product with a
        matrix of 0 and 1. For slices of a head a TPU would move half a vector register at a time:
        of Qwen3-0.6B's shape on v5e, 54.5% of the matrix rate became 63.0%.
      folds_query_norm: Whether the norm of a query's head goes into the tables of its rotation (the
        channels' scales; by product alone) and into its scores (its length). On a TPU a token's
        number has to be spread over the registers of its channels, which those of its scores need
        not: of Qwen3-0.6B's shape at 128 tokens on v6e, 49.7 million cycles became 43.0.
      products_apart: Whether what enters a gated layer's last product is written out first. The
        TPU's compiler may compute one product inside of the other, at twice the cycles: 43.0 became
        41.2.
      divides_first: Whether the softmax is divided by its sum before the product with the values.
        The TPU's compiler then makes one kernel of scores, maximum, exponentials and sum: 63.0%
        became 68.3%. On a CPU there is less to divide after the product.
      pools_in_blocks: Widest hidden state that is pooled without a condition where all of them are
        asked for. The TPU's compiler then pools while it adds what a block added, and 68.3% became
        72.5%; 4,096 wide, that pushed weights out of the chip's inner memory: 72% became 62% (v6e).
      collective_matmul: Whether devices that share the parameters exchange rows and sums beside
        their products (encoder/models/ring.py). A TPU computes nothing beside an all-reduce: those
        of Qwen3-8B's shape on four v5e took a quarter of the cycles.
      ring_tokens: Fewest tokens of a device for that: each product reads the device's share of the
        weights anew. Four v5e with 256 tokens each gained nothing, with 64 they took 1.7 times as
        long. Between two devices, so many tokens of one side also get a product of their own: 256,
        512 and 1,024 reach 57, 78 and 82% of the matrix rate apart and 71, 75 and 77% as one; among
        four devices as one is better up to 2,048.
      delta_floats: Float32 numbers that a step of the delta rule over chunks holds; as
        attention_scores.
      expert_tiles: Whether experts are applied to tiles of a single expert each, in a loop, instead
        of by ragged products, which a CPU computes as all experts on every row.
      widens_bfloat16: Whether products of bfloat16 add up in float32 and stacked weights of
        bfloat16 are read as bits. XLA's CPU backend computes other products with float32's kernels,
        a fifth as fast where the processor multiplies bfloat16 (AMX), and copies the stacks.
      float8_products: How --compute_dtype=float8 multiplies: True for products of float8; False
        for the same numbers in bfloat16, whose products are exact too; None for not at all.
      mean_by_product: Whether a mean over tokens is a matrix product. An accelerator takes one pass
        over the state as it is; for a product the state would first be made in float32.
      unstacks_blocks: Whether batches of few tokens read each block's weights from an array of
        their own. What a scan indexes a CPU copies.
      batch_flops: Work of a full batch. An accelerator's throughput grows with it: Qwen3-0.6B on an
        H200 reached 391, 429, 451 and 470 TFLOP/s with 4,096 to 32,768 tokens, blocks of the 8B's
        shape 536 with 2,048. On a CPU it means 1,024 tokens up to 1e8 operations a token and 512
        beyond: more gain nothing and pad more.
      batch_tokens: Fewest and most tokens of a full batch, padding included. What lies between the
        products of a block should stay in a TPU's inner memory: of Qwen3-0.6B's shape at 128 tokens
        on v6e, batches of 2,048, 4,096, 8,192 and 16,384 tokens reach 49, 56, 49 and 41% of the
        matrix rate.
      shape_flops: Work that one more compiled shape has to save. A shape compiles on a CPU in one
        to two seconds whatever the model's width, of which this is a tenth: 1,024 tokens of MiniLM,
        100 of SmolLM2-135M. On an H200 it took 1.5 s, four at a time, of which this is a seventh.
      shape_tokens: The same in tokens, at most.
      compiles_ahead: Whether a job compiles its shapes side by side before the first batch. Nothing
        is gained where the same cores compile and compute.
      writers: Row blocks that are fetched, digested and written at a time. On a CPU one takes less
        time than the capture of the next, on an accelerator longer.
      transposes_on_host: Whether a matrix is transposed while it is put on the device, on a CPU
        four times as fast as on the device. For an accelerator the host would transpose it before
        it is sent, far slower than the device.
      pieces_ahead: Pieces of weights that are read, digested and sent at a time. With one of each
        an H200 got 0.5 GB/s.
      one_by_one: Whether trunk members train one after the other, siblings together, instead of
        side by side under vmap. On two CPU cores 4 to 10 siblings train 1.3 times as fast so.
      wave_members: Members that train at a time; 20 siblings are no faster than 8 on a CPU, and an
        accelerator wants as many as hide the starts of its kernels.
      wave_bytes: Of the rows that members side by side read, each from a copy of its own, at most.
      state_bytes: Of trunk members on a device: parameters, best parameters, two moments, and as
        much in passing.
    """

    compute_dtype: str = "float32"
    attention_scores: int = 2**21
    unrolled_head_chunks: int = 4
    longest_causal: int = 256
    longest_bidirectional: int = 1024
    attention_tile: int = 128
    cudnn: bool = False
    cudnn_head_dim: int = 128
    splash_from: int = sys.maxsize
    rotates_by_product: bool = False
    folds_query_norm: bool = False
    products_apart: bool = False
    divides_first: bool = False
    pools_in_blocks: int = 0
    collective_matmul: bool = False
    ring_tokens: int = 512
    delta_floats: int = 2**21
    expert_tiles: bool = True
    widens_bfloat16: bool = True
    float8_products: bool | None = False
    mean_by_product: bool = True
    unstacks_blocks: bool = True
    batch_flops: float = 1024e8
    batch_tokens: tuple[int, int] = (512, 1024)
    shape_flops: float = 2e10
    shape_tokens: int = 1024
    compiles_ahead: bool = False
    writers: int = 1
    transposes_on_host: bool = True
    pieces_ahead: int = 1
    one_by_one: bool = True
    wave_members: int = 8
    wave_bytes: int = sys.maxsize  # Siblings read the same rows.
    state_bytes: int = 2**30

    @classmethod
    def of(cls, devices: Mesh | Sequence[jax.Device]) -> "Tuning":
        """The tuning of a mesh or of devices, which are all of one kind."""
        first = devices.devices.flat[0] if isinstance(devices, Mesh) else devices[0]
        if first.platform == "cpu":
            return cls.cpu()
        if first.platform not in ("gpu", "cuda"):
            return cls.tpu()
        major, minor = first.compute_capability.split(".")
        return cls.gpu((int(major), int(minor)))

    @classmethod
    def cpu(cls) -> "Tuning":
        """Of a host's cores."""
        return cls()

    @classmethod
    def gpu(cls, capability: tuple[int, int] = (9, 0)) -> "Tuning":
        """Of an NVIDIA GPU; measured on an H200.

        Args:
          capability: CUDA's compute capability; Hopper is 9.0.
        """
        return cls(
            compute_dtype="bfloat16",
            attention_scores=2**28,
            unrolled_head_chunks=1,
            longest_causal=1024,
            longest_bidirectional=1024,
            attention_tile=512,
            cudnn=True,
            cudnn_head_dim=256 if capability >= (9, 0) else 128,
            delta_floats=2**28,
            expert_tiles=False,
            widens_bfloat16=False,
            float8_products=True if capability >= (8, 9) else None,
            mean_by_product=False,
            unstacks_blocks=False,
            batch_flops=3e13,
            batch_tokens=(2048, 32768),
            shape_flops=2.5e13,
            shape_tokens=sys.maxsize,
            compiles_ahead=True,
            writers=4,
            transposes_on_host=False,
            pieces_ahead=4,
            one_by_one=False,
            wave_members=256,
            wave_bytes=2**31,
            state_bytes=2**33,
        )

    @classmethod
    def tpu(cls) -> "Tuning":
        """Of a TPU and any other accelerator: as a GPU without cuDNN, not measured on one.

        What differs beside that is by the estimate of the TPU's own compiler (docs/performance.md).
        """
        return dataclasses.replace(
            cls.gpu(),
            cudnn=False,
            float8_products=None,
            splash_from=256,
            batch_tokens=(2048, 4096),
            rotates_by_product=True,
            folds_query_norm=True,
            products_apart=True,
            divides_first=True,
            pools_in_blocks=2048,
            collective_matmul=True,
        )
