"""Routes queries: a JSON decision a line.

python -m experiments.route --router=runs/quickstart/router --query="What is 17 * 23?"
python -m experiments.route --router=runs/quickstart/router --policy=tolerance:0.2 < queries.txt
"""

import itertools
import json
import sys

from absl import flags

import routerjax as rj
from experiments import options

options.define("router", "policy", "encoder", required=("router",))
flags.DEFINE_string("query", None, "The query; without it every line of standard input is one.")
FLAGS = flags.FLAGS

# Lines of standard input routed together.
_CHUNK = 256


def main() -> None:
    """Prints decisions as they are made."""
    # Without --policy the router's own is used.
    policy = rj.parse_policy(FLAGS.policy) if FLAGS["policy"].present else None
    router = rj.Router.load(FLAGS.router)
    if FLAGS.encoder:
        router.use_encoder(options.load_router_encoders(router, FLAGS.encoder, "data:1"))
    if FLAGS.query is not None:
        lines = iter([FLAGS.query])
    else:
        lines = (line.rstrip("\n") for line in sys.stdin if line.strip())
    interactive = sys.stdin.isatty()
    while chunk := list(itertools.islice(lines, 1 if interactive else _CHUNK)):
        for query, decision in zip(chunk, router.route(chunk, policy), strict=True):
            print(json.dumps({"query": query} | decision.to_json(), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    rj.jobs.run(main)
