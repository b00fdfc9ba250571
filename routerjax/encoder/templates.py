"""Chat templates: what one puts around a query, on a fixed date, with the settings it knows."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from routerjax.encoder.renderer import Excess, render, variables_of

# Templates that print today's date get this one: a job resumed after midnight, and the router a
# month later, must see the same prompt. It is part of a store's identity.
PROMPT_DATE = datetime.date(2025, 1, 1)
# Codes of a date and of midnight; not %s, which depends on where the machine is.
_DATE_CODE = re.compile(r"%[-_0^#]?[A-Za-rt-z]")

# Stands in for the query while the template is rendered once. A private-use character on either
# side: no template contains it, and trimming does not touch it. Between them what escaping changes.
_PROBE = '\ue000Query\'s\n"<&>" \\\ue000'

# What the prompt itself decides: one user turn, the generation prompt, the date.
_OURS = ("messages", "add_generation_prompt", "strftime_now")


class Frame(NamedTuple):
    """What a template puts around a query.

    Attributes:
      head: Text before the query.
      tail: Text behind it, generation prompt included.
      trims: Whether the template trims the query.
    """

    head: str
    tail: str
    trims: bool


def frame_of(tokenizer: Any, settings: Mapping[str, Any]) -> Frame:
    """Renders the tokenizer's chat template around one user turn.

    Args:
      tokenizer: A Hugging Face tokenizer with a chat template.
      settings: Further variables of the template, such as {"enable_thinking": False}.

    Raises:
      ValueError: The template does not render, or not to a text that shows the query as it is.
    """

    def render(query: str, in_parts: bool) -> str:
        return _render(tokenizer, settings, [("user", query)], in_parts)

    # Templates of multimodal models may take a list of parts alone, and lose or spell out a text.
    failure: ValueError | None = None
    for in_parts in (False, True):
        try:
            head, shown, tail = render(_PROBE, in_parts).partition(_PROBE)
        except Excess:
            raise
        except ValueError as error:
            failure = failure or error
            continue
        if shown and _PROBE not in tail:
            break
    else:
        raise failure or ValueError(
            "the tokenizer's chat template does not show the query, as it is, exactly once"
        )
    spaced = render(f"  {_PROBE}  ", in_parts)
    if spaced == f"{head}  {_PROBE}  {tail}":
        return Frame(head, tail, False)
    if spaced == f"{head}{_PROBE}{tail}":
        return Frame(head, tail, True)
    raise ValueError("the tokenizer's chat template changes the query by more than trimming it")


class Rendered(NamedTuple):
    """A prompt before it is tokenised.

    Attributes:
      text: All of it.
      first: Where the query starts in it.
      past: Where the query ends.
      broken: Of a conversation, whether `ControlText.broken` changed a text of it; None of a text.
    """

    text: str
    first: int
    past: int
    broken: bool | None = None


def render_turns(
    tokenizer: Any, settings: Mapping[str, Any], turns: Sequence[tuple[str, str]], trims: bool
) -> Rendered | None:
    """Renders the chat template around a conversation.

    Templates that know no system, developer or tool turns, or want user and assistant to alternate,
    get these turns in front of, or as, what the user says.

    Args:
      tokenizer, settings: As in `frame_of`.
      turns: (role, text) of each message.
      trims: Whether the template trims texts.

    Returns:
      The prompt and where its turns lie, from the first text to the last; None where the template
      does not show the texts of system and user as they are.
    """
    texts = [(role, text.strip() if trims else text) for role, text in turns if text.strip()]
    plain = [("system" if role == "developer" else role, text) for role, text in texts]
    for variant in (texts, plain, _alternating(plain)):
        for in_parts in (False, True):
            try:
                prompt = _render(tokenizer, settings, variant, in_parts)
            except Excess:
                raise
            except ValueError:
                continue
            # What the assistant thought is dropped by some templates, which is as it should be.
            shown = [text for _, text in variant if text in prompt]
            asked = [text for role, text in variant if role != "assistant"]
            if shown and all(text in prompt for text in asked):
                return Rendered(
                    prompt, prompt.index(shown[0]), prompt.rindex(shown[-1]) + len(shown[-1])
                )
    return None


def _alternating(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns as user and assistant in turn, the first of them the user's."""
    merged: list[tuple[str, str]] = []
    for role, text in turns:
        role = "assistant" if role == "assistant" else "user"
        if merged and merged[-1][0] == role:
            text = f"{merged.pop()[1]}\n\n{text}"
        merged.append((role, text))
    return merged


def _render(
    tokenizer: Any, settings: Mapping[str, Any], turns: Sequence[tuple[str, str]], in_parts: bool
) -> str:
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
        for role, text in turns
    ]
    template = _template_of(tokenizer)
    variables = {**tokenizer.special_tokens_map, **settings, "messages": messages, "tools": None,
                 "documents": None, "add_generation_prompt": True}  # fmt: skip
    try:
        text = render(_with_fixed_date(template), variables)
    except ValueError as error:
        raise type(error)(f"the tokenizer's chat template does not render: {error}") from error
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the tokenizer's chat template gives no text: half a surrogate pair, {error}"
        ) from error
    return text


def _template_of(tokenizer: Any) -> str:
    named = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        raise ValueError(
            f"the tokenizer has chat templates named {', '.join(named)}, and none named 'default': "
            f"write the one to read to chat_template.jinja"
        )
    template = tokenizer.get_chat_template()
    if not isinstance(template, str):
        raise ValueError(f"the tokenizer's chat template: expected a text, got {template!r:.80}")
    return template


def check_settings(tokenizer: Any, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `chat_template_kwargs` as JSON values, all of them known to the template.

    A template passes over what it does not know, and its reader would never learn of a typing
    error: hence the check.

    Args:
      tokenizer: A Hugging Face tokenizer.
      settings: Variables of its chat template by name, or None.

    Raises:
      ValueError: There is no template, it never reads a variable of that name, the prompt decides
        that variable itself, or a value is not JSON.
    """
    if not settings:
        return {}
    try:
        values = json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"chat_template_kwargs: expected JSON values by name, got {settings!r}: {error}"
        ) from error
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"chat_template_kwargs: the tokenizer has no chat template that could read "
            f"{', '.join(values)}: leave them out"
        )
    for name in values:
        if name in _OURS:
            raise ValueError(
                f"chat_template_kwargs: {name!r} is set by the prompt itself: leave it out"
            )
    try:
        known = variables_of(_template_of(tokenizer))
    except ValueError as error:
        raise type(error)(f"the tokenizer's chat template does not render: {error}") from error
    unknown = [name for name in values if name not in known]
    if unknown:
        others = sorted(known - {*_OURS, "raise_exception", "namespace", "range"})
        raise ValueError(
            f"chat_template_kwargs: the chat template never reads {unknown[0]!r}, so that it would "
            f"change nothing; the names it reads are {', '.join(others) or 'none'}"
        )
    return values


def _with_fixed_date(template: str) -> str:
    """The template, whose `strftime_now` is a macro that knows PROMPT_DATE alone.

    transformers gives templates a function that reads the clock, and replaces any function passed
    in its place by a string.
    """
    if "strftime_now" not in template:
        return template
    # Those it has anywhere: where they are no codes, nothing replaces them.
    codes = sorted(set(_DATE_CODE.findall(template)))
    dated = "".join(f" | replace({code!r}, {PROMPT_DATE.strftime(code)!r})" for code in codes)
    # transformers trims the newline behind a tag, so the macro itself prints nothing.
    return f"{{% macro strftime_now(format) %}}{{{{ format{dated} }}}}{{% endmacro %}}\n{template}"
