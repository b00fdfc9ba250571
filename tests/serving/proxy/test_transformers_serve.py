"""`transformers serve` with a tiny model as a target, through the official client."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import openai
import pytest

from routerjax.serving.config import ServingConfig
from routerjax.targets.endpoints import Target, Targets
from tests.http_servers import free_port, wait_for

QUESTION = [{"role": "user", "content": "abc def?"}]
# Of an environment with transformers[serving].
PYTHON = os.environ.get("ROUTERJAX_TRANSFORMERS_SERVE", sys.executable)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON == sys.executable and importlib.util.find_spec("fastapi") is None,
        reason="no fastapi: name a Python that has it in $ROUTERJAX_TRANSFORMERS_SERVE",
    ),
]


@pytest.fixture
def url_of_transformers(tmp_path):
    port = free_port()
    command = [PYTHON, "-m", "transformers.cli.transformers", "serve", "--host=127.0.0.1",
               f"--port={port}", "--device=cpu"]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
        )
    url = f"http://127.0.0.1:{port}"
    wait_for(f"{url}/health", process, 180, (tmp_path / "log").read_text)
    yield url
    process.terminate()
    process.wait(60)


@pytest.fixture
def model(tiny_encoder_folder, tmp_path):
    """The folder of a language model that has the tiny encoder's weights."""
    folder = shutil.copytree(tiny_encoder_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_it_answers_through_the_server(url_of_transformers, start_app, model):
    rows = [Target(name=name, base_url=f"{url_of_transformers}/v1", model=model)
            for name in ("cheap", "dear")]  # fmt: skip
    url, _ = start_app(ServingConfig(max_batch=1), Targets(rows))
    asked = {"messages": QUESTION, "max_tokens": 5}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        chat, responses = client.chat.completions, client.responses.with_raw_response
        for name, expected in (("routerjax:tolerance=1", "cheap"), ("dear", "dear")):
            answer = chat.with_raw_response.create(model=name, **asked)
            assert answer.headers["x-model-router-selected-model"] == expected
        whole = answer.parse()
        assert whole.usage.completion_tokens == 5 and whole.choices[0].finish_reason == "length"
        chunks = list(chat.create(model="routerjax:tolerance=1", stream=True, **asked))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        answer = responses.create(
            model="routerjax:tolerance=1", input="abc def?", max_output_tokens=5,
            extra_body={"stream": False},
        )  # fmt: skip
        assert answer.headers["x-model-router-selected-model"] == "cheap"
        assert answer.parse().output_text == text
