"""The in-memory store and data set of tests/features, here as well."""

import importlib.util
import pathlib

_path = pathlib.Path(__file__).parents[1] / "features" / "conftest.py"
_spec = importlib.util.spec_from_file_location("features_conftest", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

fake_data, fake_store, toy = _module.fake_data, _module.fake_store, _module.toy
