"""targets.json."""

import json

import pytest

from routerjax.targets.endpoints import read_targets


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], 'expected {"targets"'),
        ({"targets": [{"name": "a"}]}, r"targets\[0\]: base_url: Field required"),
        ({"targets": [{"name": "a", "base_url": "x"}]}, r"targets\[0\]: base_url"),
        ({"targets": [{"name": "a", "base_url": "http://h", "modle": "b"}]}, r"modle: Extra"),
        ({"targets": [{"name": "a", "base_url": "http://h", "input_price": -1}]}, "input_price"),
        ({"targets": [{"name": "a", "base_url": "http://h", "modalities": ["images"]}]},
         r"modalities.0: Input should be 'text', 'image'"),
        ({"targets": [{"name": "a", "base_url": "http://h"}] * 2}, "'a' is given twice"),
        ({"targets": [{"name": "a", "base_url": "http://h", "api_key_env": "NONE_"}]}, "NONE_"),
    ],
)  # fmt: skip
def test_targets_json_is_checked(value, message, tmp_path):
    path = tmp_path / "targets.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        read_targets(path)


def test_a_target_needs_name_and_address_alone(tmp_path):
    path = tmp_path / "targets.json"
    path.write_text('{"targets": [{"name": "a", "base_url": "http://host/v1/"}]}')
    target = read_targets(path).get("a")
    assert target.url == "http://host/v1/chat/completions"
    assert (target.fields, target.headers) == ({"model": "a"}, {})
