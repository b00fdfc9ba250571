"""routerjax: picks the LLM that should answer a query, before any of them writes a token.

The public surface. Names are loaded when first used, so that importing routerjax is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset
    from routerjax.data.quality import describe
    from routerjax.data.readers import read_dataset, write_dataset, write_pool
    from routerjax.data.simulate import simulate
    from routerjax.data.store import ActivationStore
    from routerjax.devices import make_mesh
    from routerjax.encoder.encoder import Encoder
    from routerjax.encoder.estimate import estimate
    from routerjax.encoder.extract import extract
    from routerjax.encoder.layers import parse_layers
    from routerjax.encoder.rounding import dtype_errors
    from routerjax.features.features import fit_features
    from routerjax.features.recipe import Recipe
    from routerjax.features.recipe_flags import parse_recipe, parse_recipes
    from routerjax.files import Folder
    from routerjax.probes.probe import probe
    from routerjax.probes.select import resolve as resolve_recipe
    from routerjax.probes.stream_probe import probe_stream
    from routerjax.probes.sweep import sweep
    from routerjax.probes.sweep_lines import sweep_lines
    from routerjax.probes.sweep_table import SweepTable
    from routerjax.probes.table import ProbeTable
    from routerjax.probes.then_extract import probe_then_extract
    from routerjax.routing.baselines import BASELINES, Baseline
    from routerjax.routing.compare import compare
    from routerjax.routing.compare_lines import comparison_lines
    from routerjax.routing.compare_plot import save as save_comparison
    from routerjax.routing.decision import Decision
    from routerjax.routing.few_labels import few_labels
    from routerjax.routing.few_labels_lines import few_labels_lines
    from routerjax.routing.few_labels_plot import save as save_few_labels
    from routerjax.routing.fit import evaluate, fit_policy, fit_router
    from routerjax.routing.holding import holding_lines, holding_report
    from routerjax.routing.missing import missing_lines, missing_outcomes
    from routerjax.routing.plan import Plan, parse_plans
    from routerjax.routing.plan import trunk_config as named_trunk
    from routerjax.routing.policy import (
        Argmax,
        Budget,
        Policy,
        Quality,
        Tolerance,
        Utility,
        Value,
        parse_policy,
    )
    from routerjax.routing.report import write_report
    from routerjax.routing.router import Router
    from routerjax.routing.simulated import against_the_truth, truth_lines
    from routerjax.routing.summary import summary_lines
    from routerjax.trunk.config import TrunkConfig
    from routerjax.trunk.grid import parse_grid as parse_trunk_grid
    from routerjax.trunk.many import train_many as train_trunks
    from routerjax.trunk.member import Member as TrunkMember
    from routerjax.trunk.sweep import sweep_trunks, trunk_lines
    from routerjax.trunk.train import train as train_trunk

_HOME = {
    "ActivationStore": "data.store",
    "BASELINES": "routing.baselines",
    "Baseline": "routing.baselines",
    "Argmax": "routing.policy",
    "Budget": "routing.policy",
    "Decision": "routing.decision",
    "Encoder": "encoder.encoder",
    "Folder": "files",
    "Plan": "routing.plan",
    "Policy": "routing.policy",
    "ProbeTable": "probes.table",
    "Quality": "routing.policy",
    "Recipe": "features.recipe",
    "Router": "routing.router",
    "RoutingDataset": "data.dataset",
    "SweepTable": "probes.sweep_table",
    "Tolerance": "routing.policy",
    "TrunkConfig": "trunk.config",
    "TrunkMember": "trunk.member",
    "Utility": "routing.policy",
    "Value": "routing.policy",
    "against_the_truth": "routing.simulated",
    "compare": "routing.compare",
    "comparison_lines": "routing.compare_lines",
    "describe": "data.quality",
    "dtype_errors": "encoder.rounding",
    "estimate": "encoder.estimate",
    "evaluate": "routing.fit",
    "extract": "encoder.extract",
    "few_labels": "routing.few_labels",
    "few_labels_lines": "routing.few_labels_lines",
    "fit_features": "features.features",
    "fit_policy": "routing.fit",
    "fit_router": "routing.fit",
    "holding_lines": "routing.holding",
    "holding_report": "routing.holding",
    "jobs": "jobs",
    "make_mesh": "devices",
    "missing_lines": "routing.missing",
    "missing_outcomes": "routing.missing",
    "named_trunk": "routing.plan",
    "parse_layers": "encoder.layers",
    "parse_plans": "routing.plan",
    "parse_policy": "routing.policy",
    "parse_recipe": "features.recipe_flags",
    "parse_recipes": "features.recipe_flags",
    "parse_trunk_grid": "trunk.grid",
    "probe": "probes.probe",
    "probe_stream": "probes.stream_probe",
    "probe_then_extract": "probes.then_extract",
    "read_dataset": "data.readers",
    "resolve_recipe": "probes.select",
    "save_few_labels": "routing.few_labels_plot",
    "save_comparison": "routing.compare_plot",
    "simulate": "data.simulate",
    "start_distributed": "processes",
    "sweep": "probes.sweep",
    "sweep_lines": "probes.sweep_lines",
    "sweep_trunks": "trunk.sweep",
    "train_trunk": "trunk.train",
    "train_trunks": "trunk.many",
    "trunk_lines": "trunk.sweep",
    "truth_lines": "routing.simulated",
    "write_dataset": "data.readers",
    "write_pool": "data.readers",
    "summary_lines": "routing.summary",
    "write_report": "routing.report",
}
# Plain names at home, telling ones here.
_NAME_THERE = {
    "TrunkMember": "Member",
    "parse_trunk_grid": "parse_grid",
    "named_trunk": "trunk_config",
    "resolve_recipe": "resolve",
    "save_comparison": "save",
    "save_few_labels": "save",
    "train_trunk": "train",
    "train_trunks": "train_many",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'routerjax' has no attribute {name!r}")
    module = importlib.import_module(f"routerjax.{_HOME[name]}")
    value = module if name == "jobs" else getattr(module, _NAME_THERE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
