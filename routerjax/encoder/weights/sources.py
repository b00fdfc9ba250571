"""Sources: where each parameter of a model lies in its checkpoint, by the family's key table."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.key_tables import ExpertTensor, Table, interleave
from routerjax.encoder.weights import mxfp4
from routerjax.encoder.weights.sharding import Path

_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_LEAVES |= {name: name for name in ("sinks", "A_log", "dt_bias", "D", "layer_scalar")}
_LEAVES |= {"norm_scale": "norm.weight"}
_LEAVES |= {"correction": "e_score_correction_bias"}
_LEAVES |= {"input_scale": "scale", "expert_scale": "per_expert_scale"}
# BERT checkpoints converted from TensorFlow call a norm's parameters gamma and beta.
_TENSORFLOW = {"scale": "gamma", "bias": "beta"}

# What stands before the table's keys: nothing (saved from the base model), the attribute of the
# head model, or of a multimodal model.
_PREFIXES = (
    "",
    "model.",
    "bert.",
    "roberta.",
    "deberta.",
    "backbone.",
    "distilbert.",
    "mpnet.",
    "nomic_bert.",
    "gte.",
    "new.",
    "language_model.",
    "language_model.model.",
    "model.language_model.",
    "model.text_model.",
)
# The head's weights, which are the embedding's where the two are tied.
_HEAD = re.compile(r"(^|\.)(lm_head|lm_head\.decoder|cls\.predictions\.decoder|decoder)\.weight$")
# Parts that a prefill has no use for, and buffers that old checkpoints carry.
_IGNORED = re.compile(
    r"^(lm_head|cls|pooler|classifier|score|qa_outputs)\.|rotary_emb\.inv_freq$|position_ids$"
)


class Source(NamedTuple):
    """Where a block's share of a parameter lies, or that of one of its experts.

    Attributes:
      name: The parameter, whichever stack its blocks are in: "blocks/attention/q/kernel"; with the
        expert's number after it.
      number: Of the block; 0 outside blocks.
      path: The parameter in the state.
      at: The block's place on the parameter's first axis, the expert's on its second; empty outside
        blocks.
      key: The checkpoint's tensor.
      rows: Rows of that tensor to read.
      n_axes: How many of its first axes count as one, that of the rows.
      columns: Columns to read of each row.
      transposed: Whether the rows lie along the parameter's last axis.
      scales: The tensor of the scales of a key in MXFP4, or "".
      first: Index in the parameter of the first output that these rows fill.
    """

    name: str
    number: int
    path: tuple[Any, ...]
    at: tuple[int, ...]
    key: str
    rows: range
    n_axes: int = 1
    columns: slice = slice(None)
    transposed: bool = False
    scales: str = ""
    first: int = 0


def resolve(
    folder: pathlib.Path,
    config: EncoderConfig,
    tables: tuple[Table, ...],
    wanted: dict[Path, tuple[int, ...]],
    held: dict[str, tuple[int, ...]],
) -> list[Source]:
    """Where each parameter lies in the checkpoint: blocks in order, however they are stacked.

    Args:
      folder: Where the checkpoint lies, for the error.
      config: Of the encoder.
      tables: The key tables of the checkpoint, one a layout.
      wanted: {path in the state: shape} of the model's parameters.
      held: {key: shape} of the checkpoint's tensors.

    Raises:
      ValueError: Keys are missing, unexpected or of another shape: all of them in one list.
    """
    layouts = [(prefix, table) for prefix in _PREFIXES for table in tables]
    n_found = [_n_found(prefix, table, config.n_layers, held) for prefix, table in layouts]
    if not max(n_found):
        raise ValueError(
            f"{folder} does not hold the {config.family} model that its config.json describes: "
            f"{_other_names(tables[0], held)}"
        )
    # Layouts of the same keys differ in shapes.
    likely = [layout for layout, n in zip(layouts, n_found, strict=True) if n == max(n_found)]
    resolved = [_in_layout(prefix, table, config, wanted, held) for prefix, table in likely]
    sources, faults = min(resolved, key=lambda each: len(each[1]))
    if faults:
        faults = list(dict.fromkeys(faults))
        shown = "\n  ".join(faults[:40] + [f"... {len(faults) - 40} more"] * (len(faults) > 40))
        raise ValueError(
            f"{folder} does not hold the {config.family} model that its config.json describes:\n"
            f"  {shown}"
        )
    return sorted(sources, key=lambda source: (source.name, source.number, source.first))


def _other_names(table: Table, held: dict[str, Any]) -> str:
    """How a checkpoint's names differ from a table's, none of which it has."""
    ours = [_tensor(each, 0) for each in table.values()]
    theirs = [key for key in held if key.endswith(tuple(f".{name}" for name in ours))]
    if not theirs:
        return (
            f"none of its tensors, such as {min(held, default='none')!r}, is named as {ours[0]!r}"
        )
    name = max((name for name in ours if theirs[0].endswith(f".{name}")), key=len)
    before = theirs[0].removesuffix(name)
    return (
        f"the names of its tensors begin with {before!r}: save the model without what is around "
        f"it, so that they begin with 'model.' or nothing"
    )


def _in_layout(
    prefix: str,
    table: Table,
    config: EncoderConfig,
    wanted: dict[Path, tuple[int, ...]],
    held: dict[str, tuple[int, ...]],
) -> tuple[list[Source], list[str]]:
    """Where everything would lie in a layout, and how the checkpoint differs from that."""
    sources: list[Source] = []
    faults: list[str] = []

    def expect(key: str, expected: tuple[int, ...]) -> None:
        if key not in held:
            faults.append(f"missing: {key} {expected}")
        elif held[key] != expected:
            faults.append(f"misshapen: {key} is {held[key]}, expected {expected}")

    for path, shape in wanted.items():
        stack, module, leaf = _parse(path)
        blocks = [0] if stack is None else config.blocks_of(stack)
        theirs = table[module]
        if isinstance(theirs, ExpertTensor):
            for row, i in enumerate(blocks):
                for source, tensors in _expert_sources(theirs, prefix, path, shape[1:], row, i):
                    sources.append(source)
                    for key, extents in tensors.items():
                        expect(key, extents)
            continue
        fused = {m: _n_outputs(wanted, path, m) for m in table if table[m] == theirs}
        first = sum(fused[m] for m in list(fused)[: list(fused).index(module)])
        expected = shape if stack is None else shape[1:]
        expected = expected[::-1] if leaf == "kernel" else expected
        # The modules' rows lie one after the other, or interleaved in as many rounds.
        n_rounds, n_all = 1, expected[0]
        if len(fused) > 1:
            n_rounds, n_all = interleave(config, theirs), sum(fused.values())
        n_rows = expected[0] // n_rounds
        starts = range(first // n_rounds, n_all, n_all // n_rounds)
        expected = (n_all, *expected[1:])
        for row, i in enumerate(blocks):
            if not config.first_norm and (module, i) == ("blocks/attention_norm", 0):
                continue
            key = _key(prefix + theirs.format(i=i), leaf, held)
            if module == "embed" and config.tied and key not in held:
                key = next((head for head in held if _HEAD.search(head)), key)
            expect(key, expected)
            at = () if stack is None else (row,)
            for nth, begin in enumerate(starts):
                rows = range(begin, begin + n_rows)
                source = Source(f"{module}/{leaf}", i, path, at, key, rows, first=nth * n_rows)
                sources.append(source._replace(transposed=leaf == "kernel"))
    used = {key for source in sources for key in (source.key, source.scales)}
    further = range(config.n_layers, config.n_layers + config.n_unread_blocks)
    unread = tuple(f"{prefix}{blocks}.{i}." for i in further for blocks in ("layers", "blk"))
    if config.disentangled is not None and not config.disentangled.positions:
        unread += (f"{prefix}embeddings.position_embeddings.",)
    # Layers that borrow keys and values may have such of their own, which nothing reads.
    borrowing = [i for i, lender in enumerate(config.lenders) if lender is not None]
    unread += tuple(f"{prefix}layers.{i}.self_attn.{part}" for i in borrowing for part in "kv")
    for key in sorted(set(held) - used):
        inside = key.startswith(prefix) and not key.startswith(unread)
        if inside and not _IGNORED.search(key.removeprefix(prefix)) and not _IGNORED.search(key):
            # Beside the base model may lie its head; inside it nothing may be left over.
            faults.append(f"unexpected: {key} {held[key]}")
    return sources, faults


def _n_found(prefix: str, table: Table, n_layers: int, held: dict[str, Any]) -> int:
    """How many of a table's tensors a checkpoint has, of every block and of the first expert."""
    return sum(
        prefix + _tensor(each, i) in held for each in table.values() for i in range(n_layers)
    )


def _tensor(theirs: str | ExpertTensor, i: int) -> str:
    """The name of a module's weight in a block, of the first expert."""
    key = theirs.kernel_key if isinstance(theirs, ExpertTensor) else f"{theirs}.weight"
    return key.format(i=i, e=0)


def _expert_sources(
    theirs: ExpertTensor,
    prefix: str,
    path: Path,
    shape: tuple[int, ...],
    row: int,
    i: int,
) -> Iterator[tuple[Source, dict[str, tuple[int, ...]]]]:
    """Of every expert of a block: where its kernel or bias lies, and the shapes of the tensors."""
    _, module, leaf = _parse(path)
    n_experts, n_out = shape[0], shape[-1]
    n_shared = theirs.n_shares * n_out
    apart, kernel = "{e}" in theirs.key, leaf == "kernel"
    columns = slice(None)
    if theirs.interleaved:
        outputs = range(theirs.share, n_shared, theirs.n_shares)
    else:
        outputs = range(theirs.share * n_out, (theirs.share + 1) * n_out)
    rows, n_rows = outputs, n_shared
    if kernel and theirs.outputs_last:
        columns = slice(outputs.start, outputs.stop, outputs.step)
        rows, n_rows = range(shape[1]), shape[1]
    one: tuple[int, ...] = (n_rows,)
    if kernel:
        one = (n_rows, n_shared if theirs.outputs_last else shape[1])
    for e in range(n_experts):
        first = 0 if apart else e * n_rows
        key = prefix + theirs.key.format(i=i, e=e)
        source = Source(
            name=f"{module}/{leaf}/{e}",
            number=i,
            path=path,
            at=(row, e),
            key=key if kernel else f"{key}_bias",
            rows=range(first + rows.start, first + rows.stop, rows.step),
            n_axes=1 if apart else 2,
            columns=columns,
            transposed=kernel and not theirs.outputs_last,
        )
        if kernel and theirs.packed:
            source = source._replace(key=f"{key}_blocks", scales=f"{key}_scales")
            groups = (n_experts, n_rows, shape[1] // mxfp4.GROUP)
            expected = {source.key: (*groups, mxfp4.GROUP // 2), f"{key}_scales": groups}
        else:
            expected = {source.key: one if apart else (n_experts, *one)}
        yield source, expected


def _parse(path: Path) -> tuple[int | None, str, str]:
    """The stack (None outside blocks), the module as the key tables name it, the leaf."""
    if path[0] != "blocks":
        return None, "/".join(path[:-1]), path[-1]
    return int(path[1]), "/".join(("blocks", *path[2:-1])), path[-1]


def _n_outputs(wanted: dict[Path, tuple[int, ...]], path: Any, module: str) -> int:
    """The last extent of the same leaf of another module in the same stack; 0 if it has none."""
    inside = tuple(module.split("/"))
    inside = (*path[:2], *inside[1:]) if path[0] == "blocks" else inside
    return wanted.get((*inside, path[-1]), (0,))[-1]


def _key(module: str, leaf: str, held: dict[str, Any]) -> str:
    renamed = f"{module}.{_TENSORFLOW.get(leaf, '')}"
    return renamed if renamed in held else f"{module}.{_LEAVES[leaf]}"
