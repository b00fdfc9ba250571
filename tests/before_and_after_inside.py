"""What before_and_after.py has done inside a checkout: inputs, API, stores opened again.

It is started with inputs FOLDER, api WORK INPUTS or open OUT RESULT.
"""

import functools
import hashlib
import inspect
import json
import pathlib
import shutil
import sys
from typing import Any

import routerjax as rj


def write_inputs(folder: pathlib.Path) -> None:
    """Outcomes, prices, MiniLM, and a tiny Qwen3 with a chat template over single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from experiments import options

    tiny = folder / "tiny"
    shutil.copytree(next(pathlib.Path().glob("tests/**/golden/qwen3")), tiny)
    (folder / "minilm").symlink_to(options.find_encoder("minilm"))
    test, train = rj.simulate(400, seed=5).split(0.25, seed=0)
    rj.write_dataset(train, folder / "train.jsonl")
    rj.write_dataset(test, folder / "test.jsonl.gz")
    rj.write_pool(train, folder / "pool.json")
    letters = ["<unk>", "<user>", "<assistant>", *"abcdefghijklmnopqrstuvwxyz0123456789 ?.,+-*/="]
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>",
                                        additional_special_tokens=letters[1:3])  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}<user>read this. {{ m.content }}{% endfor %}"
        "{% if brief %} - brief{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(tiny)


def use_api(work: pathlib.Path, inputs: pathlib.Path) -> None:
    """The public names, and README's program in one process."""
    found: dict[str, Any] = {"names": {}}
    for name in rj.__all__:
        value = getattr(rj, name)
        takes = inspect.signature(value).parameters.values() if inspect.isroutine(value) else ()
        members = dir(value) if inspect.isclass(value) else ()
        found["names"][name] = [f"{p.kind.name} {p.name}={p.default!r}" for p in takes]
        found["names"][name] += [member for member in members if not member.startswith("_")]
    data = rj.read_dataset(inputs / "test.jsonl.gz", pool=inputs / "pool.json")
    test, train = data.split(0.4, seed=0)
    store = rj.extract(rj.Encoder.from_pretrained(str(inputs / "tiny")), data, work / "store")
    rj.write_dataset(rj.simulate(50, 3), work / "simulated.jsonl")
    rj.write_pool(data, work / "pool.json")
    found["described"] = rj.describe(data).lines()
    found["rank"] = rj.probe(store, train).rank()
    found["best"] = repr(rj.sweep(store, train, [4, 8], n_folds=2, draws=0).best())
    recipe = rj.Recipe.all_layers(pooling="mean", pca_dim=8)
    config = rj.TrunkConfig(seeds=(1, 2), keep=2, epochs=3)
    router = rj.fit_router(store, train, recipe=recipe, config=config)
    found["metrics"] = rj.evaluate(router, store, test)
    router.save(work / "router")
    router = rj.Router.load(work / "router")
    for policy in (rj.Argmax(), rj.Tolerance(0.2), rj.Value(0.01), rj.Utility(0.5),
                   rj.Budget(0.001), rj.Quality(0.5)):  # fmt: skip
        fitted = rj.fit_policy(policy, router, store, test)
        found[policy.name] = router.route("What is 17 * 23?", policy=fitted).to_json()
    found["allowed"] = router.route(["a", "b"], allowed=["owl-32b-think", "wren-1b"])[1].to_json()
    found["p"] = router.predict_store(store, test.ids).tolist()
    outcomes = {name: float(i % 3 == 0) for i, name in enumerate(train.ids)}
    # Once a method of the router.
    add_target = getattr(router, "add_target", None) or functools.partial(rj.add_target, router)
    head = add_target("new-model", outcomes, price=(0.5, 1.5), stores=store)
    found["head"] = [head.penalty, head.log_loss, head.weight_KH.tolist()]
    router.save(work / "router_with_new")
    (work / "api.json").write_text(json.dumps(found, indent=1))


def open_all(out: pathlib.Path, result: pathlib.Path) -> None:
    """What stores hold and routers say under a folder, as JSON."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*/work/**/store.json")):
        store, digest = rj.ActivationStore.open(path.parent), hashlib.sha256()
        for rows, h_LPRD in store.blocks():
            digest.update(f"{rows} {h_LPRD.shape} {h_LPRD.dtype}".encode() + h_LPRD.tobytes())
        found[str(path.relative_to(out))] = [store.identity, store.ids, store.n_tokens_N.tolist(),
                                             store.verify(), digest.hexdigest()]  # fmt: skip
    for path in sorted(out.glob("*/work/**/router.json")):
        router = rj.Router.load(path.parent)
        decisions = [router.route("How many eggs?"), *router.route(["a?", "Sort these: 3 1 2"])]
        found[str(path.relative_to(out))] = [decision.to_json() for decision in decisions]
    result.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    command = {"inputs": write_inputs, "api": use_api, "open": open_all}[sys.argv[1]]
    command(*map(pathlib.Path, sys.argv[2:]))
