"""routerjax: picks the LLM that should answer a query, before any of them writes a token.

The public surface. Names are loaded when first used, so that importing routerjax is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset
    from routerjax.data.quality import describe
    from routerjax.data.readers import read_dataset, write_dataset, write_pool
    from routerjax.data.simulated.simulate import simulate
    from routerjax.encoder.encoder import Encoder
    from routerjax.encoder.extraction.estimate import estimate
    from routerjax.encoder.extraction.extract import extract
    from routerjax.encoder.precision import dtype_errors
    from routerjax.encoder.selection import parse_layers
    from routerjax.evaluation.evaluate import evaluate
    from routerjax.features.fit import fit_features
    from routerjax.features.recipe import Recipe
    from routerjax.features.recipe_flags import parse_recipe, parse_recipes
    from routerjax.probes.probe import probe
    from routerjax.probes.streaming.stream_probe import probe_stream
    from routerjax.probes.streaming.then_extract import probe_then_extract
    from routerjax.probes.table import ProbeTable
    from routerjax.report.report import write_report
    from routerjax.report.study_pictures import save_comparison, save_few_labels
    from routerjax.report.text import comparison_lines, few_labels_lines, summary_lines, sweep_lines
    from routerjax.routing.constrained import Budget, Quality
    from routerjax.routing.decision import Decision
    from routerjax.routing.fit import fit_policy, fit_router
    from routerjax.routing.policies import Argmax, Tolerance, Utility, Value
    from routerjax.routing.policy import Policy, parse_policy
    from routerjax.routing.router import Router
    from routerjax.runtime.devices import make_mesh
    from routerjax.runtime.files import Folder
    from routerjax.runtime.processes import start_distributed
    from routerjax.runtime.provenance import describe_run, write_config
    from routerjax.runtime.resume import log
    from routerjax.runtime.script import run as run_script
    from routerjax.store.store import ActivationStore
    from routerjax.studies.compare import compare
    from routerjax.studies.constraint_check import holding_lines, holding_report
    from routerjax.studies.contestants import BASELINES, Baseline, Plan, parse_plans
    from routerjax.studies.contestants import trunk_config as named_trunk
    from routerjax.studies.few_labels import few_labels
    from routerjax.studies.oracle_gap import against_the_truth, truth_lines
    from routerjax.studies.sparse_outcomes import missing_lines, missing_outcomes
    from routerjax.studies.trunk_grid import parse_grid as parse_trunk_grid
    from routerjax.studies.trunk_sweep import sweep_trunks, trunk_lines
    from routerjax.sweeps.select import resolve as resolve_recipe
    from routerjax.sweeps.sweep import sweep
    from routerjax.sweeps.table import SweepTable
    from routerjax.trunk.config import TrunkConfig
    from routerjax.trunk.many import train_many as train_trunks
    from routerjax.trunk.member import Member as TrunkMember
    from routerjax.trunk.train import train as train_trunk

_HOME = {
    "ActivationStore": "store.store",
    "Argmax": "routing.policies",
    "BASELINES": "studies.contestants",
    "Baseline": "studies.contestants",
    "Budget": "routing.constrained",
    "Decision": "routing.decision",
    "Encoder": "encoder.encoder",
    "Folder": "runtime.files",
    "Plan": "studies.contestants",
    "Policy": "routing.policy",
    "ProbeTable": "probes.table",
    "Quality": "routing.constrained",
    "Recipe": "features.recipe",
    "Router": "routing.router",
    "RoutingDataset": "data.dataset",
    "SweepTable": "sweeps.table",
    "Tolerance": "routing.policies",
    "TrunkConfig": "trunk.config",
    "TrunkMember": "trunk.member",
    "Utility": "routing.policies",
    "Value": "routing.policies",
    "against_the_truth": "studies.oracle_gap",
    "compare": "studies.compare",
    "comparison_lines": "report.text",
    "describe": "data.quality",
    "describe_run": "runtime.provenance",
    "dtype_errors": "encoder.precision",
    "estimate": "encoder.extraction.estimate",
    "evaluate": "evaluation.evaluate",
    "extract": "encoder.extraction.extract",
    "few_labels": "studies.few_labels",
    "few_labels_lines": "report.text",
    "fit_features": "features.fit",
    "fit_policy": "routing.fit",
    "fit_router": "routing.fit",
    "holding_lines": "studies.constraint_check",
    "holding_report": "studies.constraint_check",
    "log": "runtime.resume",
    "make_mesh": "runtime.devices",
    "missing_lines": "studies.sparse_outcomes",
    "missing_outcomes": "studies.sparse_outcomes",
    "named_trunk": "studies.contestants",
    "parse_layers": "encoder.selection",
    "parse_plans": "studies.contestants",
    "parse_policy": "routing.policy",
    "parse_recipe": "features.recipe_flags",
    "parse_recipes": "features.recipe_flags",
    "parse_trunk_grid": "studies.trunk_grid",
    "probe": "probes.probe",
    "probe_stream": "probes.streaming.stream_probe",
    "probe_then_extract": "probes.streaming.then_extract",
    "read_dataset": "data.readers",
    "resolve_recipe": "sweeps.select",
    "run_script": "runtime.script",
    "save_comparison": "report.study_pictures",
    "save_few_labels": "report.study_pictures",
    "simulate": "data.simulated.simulate",
    "start_distributed": "runtime.processes",
    "summary_lines": "report.text",
    "sweep": "sweeps.sweep",
    "sweep_lines": "report.text",
    "sweep_trunks": "studies.trunk_sweep",
    "train_trunk": "trunk.train",
    "train_trunks": "trunk.many",
    "trunk_lines": "studies.trunk_sweep",
    "truth_lines": "studies.oracle_gap",
    "write_config": "runtime.provenance",
    "write_dataset": "data.readers",
    "write_pool": "data.readers",
    "write_report": "report.report",
}
# Plain names at home, telling ones here.
_NAME_THERE = {
    "TrunkMember": "Member",
    "named_trunk": "trunk_config",
    "parse_trunk_grid": "parse_grid",
    "resolve_recipe": "resolve",
    "run_script": "run",
    "train_trunk": "train",
    "train_trunks": "train_many",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'routerjax' has no attribute {name!r}")
    module = importlib.import_module(f"routerjax.{_HOME[name]}")
    value = getattr(module, _NAME_THERE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
