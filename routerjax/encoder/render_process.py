"""The process that renders chat templates: a checkpoint's template is a program of its author's.

jinja2's sandbox keeps it from files and from Python's internals, not from running for ever or
filling memory. So it runs here, and this process ends where a rendering takes too long. So does
what a tokenizer's regexes and rules make of a text, once. Run as a script, it imports jinja2 alone,
and tokenizers when asked. A request is a line of JSON, and so is the answer.
"""

import json
import signal
import sys
from typing import Any

# CPU seconds of one rendering; a template of a known family takes under a millisecond.
SECONDS = 2.0
BYTES = 2**30
# Characters of a rendered text: this many, and this many times those of the request.
CHARACTERS, TIMES = 2**20, 8


def environment() -> Any:
    """jinja2 as transformers sets it up for chat templates."""
    import jinja2.ext
    import jinja2.utils
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """transformers' tag around the answers of the assistant, which is nothing to a prompt."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Namespace(jinja2.utils.Namespace):
        """jinja2's, without names that Python's internals have."""

        def __init__(self, /, *args: Any, **values: Any):
            super().__init__()
            for name, value in dict(*args, **values).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"{name!r}: the name begins with _")
            super().__setitem__(name, value)

    class Dict:
        """What templates need of `dict`, and nothing that it has beside."""

        def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
            return dict(*args, **values)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)  # fmt: skip

    result = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    result.filters["tojson"] = tojson
    result.globals |= {"raise_exception": raise_exception, "namespace": Namespace, "dict": Dict()}
    return result


def answer(jinja: Any, compiled: dict[str, Any], request: dict[str, Any], most: int) -> Any:
    """The names that a template looks up, its text with the request's variables, or a `split`."""
    from jinja2 import meta

    if "parts" in request:
        return split(**request)
    template = request["template"]
    if "variables" not in request:
        return sorted(meta.find_undeclared_variables(jinja.parse(template)))
    if template not in compiled:
        compiled[template] = jinja.from_string(template)
    parts, left = [], most
    for part in compiled[template].generate(request["variables"]):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise MemoryError(f"its text has more than {most:,} characters")
    return "".join(parts)


def split(parts: dict[str, Any], text: str, most: int) -> int:
    """The number of pieces that a tokenizer without words of its own makes of a text."""
    from tokenizers import Tokenizer

    model = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
    rest = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    whole = parts | rest | {"version": "1.0", "added_tokens": [], "model": model}
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    if tokenizer.normalizer is not None:
        length = len(tokenizer.normalizer.normalize_str(text))
        if length > most:
            raise MemoryError(f"it makes {length:,} characters of {len(text):,}")
    return len(tokenizer.encode(text).ids)


def main() -> None:
    """Answers requests until there are no more."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    except (ImportError, ValueError, OSError):
        pass  # No such limit on this system.
    jinja, compiled = environment(), dict[str, Any]()
    for line in sys.stdin:
        # Its default action ends the process, in compiled code too.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            result = answer(jinja, compiled, json.loads(line), CHARACTERS + TIMES * len(line))
            reply = json.dumps({"result": result})
        except MemoryError as error:
            reply = json.dumps({"excess": str(error) or f"it takes over {BYTES >> 20} MiB"})
        except BaseException as error:  # A panic of the tokenizers library is no Exception.
            reply = json.dumps({"error": f"{error or type(error).__name__}"[:1000]})
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{reply}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
