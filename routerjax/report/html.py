"""The parts a report is made of: escaped text, tables, pictures inside the page, the page itself.

Whatever is text is escaped here and nowhere else; what is already HTML is a `Html`, so that one
cannot be taken for the other.
"""

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --dim: #5d666f; --line: #d9dee3;
  --page: #ffffff; --band: #f4f6f8; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --dim: #9aa4ae; --line: #343b42;
  --page: #15181b; --band: #1e2327; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 62rem; color: var(--text);
  background: var(--page); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: .4rem 0 .8rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .7rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
p, ul { max-width: 46rem; margin: .6rem 0; }
.lead { font-size: 1.08rem; }
small, .dim, .caption { color: var(--dim); }
.table { overflow-x: auto; margin: .3rem 0 .9rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.caption { font-size: .88rem; margin: 1rem 0 0; max-width: none; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; overflow-wrap: normal; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 4rem; }
thead th { background: var(--band); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 8rem;
  white-space: normal; }
td small { display: block; }
td small.why { min-width: 9rem; max-width: 16rem; margin-left: auto; white-space: normal; }
tr.mark td { color: var(--mark); font-weight: 600; }
td.text, th.text { text-align: left; min-width: 12rem; white-space: normal;
  overflow-wrap: anywhere; }
figure { margin: 1rem 0; padding: .6rem; background: #ffffff; border: 1px solid var(--line);
  border-radius: 6px; }
img { display: block; width: 100%; height: auto; }
figcaption { color: #5d666f; font-size: .88rem; padding-top: .4rem; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
""".strip()


class Html(str):
    """Text that is HTML already."""


def escape(value: object) -> Html:
    """Any value as HTML; what is a `Html` stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """The parts one after another."""
    return Html("\n".join(escape(part) for part in parts))


def tag(name: str, *parts: object, css: str | None = None) -> Html:
    """The parts inside an element."""
    css = "" if css is None else f' class="{css}"'
    return Html(f"<{name}{css}>" + "".join(escape(part) for part in parts) + f"</{name}>")


def number(
    value: float | None, form: str | Callable[[float], str] = "{:.3f}", reason: str | None = None
) -> Html:
    """A number, or an en dash with the reason why there is none.

    Args:
      value: The number, or None.
      form: A format string, or a function that returns text.
      reason: Shown under the dash.
    """
    if value is None:
        return join(["–", *([tag("small", reason, css="why")] if reason else [])])
    return escape(form.format(value) if isinstance(form, str) else form(value))


def percent(value: float | None, reason: str | None = None) -> Html:
    """A share as a percentage with one decimal."""
    return number(value, "{:.1%}", reason)


def usd(value: float | None, reason: str | None = None) -> Html:
    """USD per query as USD per 1,000 queries, to three digits."""
    return number(value, lambda cost: f"${_digits(1000 * cost)}", reason)


def _digits(value: float) -> str:
    """Three significant digits, never in powers of ten that people must count."""
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:#.3g}".rstrip(".") if value else "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2e}"


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: object = "",
    mark: int | None = None,
    text_columns: Sequence[int] = (),
) -> Html:
    """A table that scrolls by itself where the screen is narrow.

    Args:
      head: Of each column.
      rows: Of cells.
      caption: Above the table.
      mark: The row to set off.
      text_columns: Columns to align left; the first always is.
    """
    lines = [
        tag("tr", *_cells("td", row, text_columns), css="mark" if i == mark else None)
        for i, row in enumerate(rows)
    ]
    body = tag("thead", tag("tr", *_cells("th", head, text_columns))) + tag("tbody", join(lines))
    # Beside the table, not inside: a caption would scroll away with it on a phone.
    above = [tag("p", caption, css="caption")] if caption else []
    return join([*above, tag("div", tag("table", Html(body)), css="table")])


def _cells(name: str, row: Sequence[object], text_columns: Sequence[int]) -> list[Html]:
    return [tag(name, v, css="text" if j in text_columns else None) for j, v in enumerate(row)]


def picture(figure: "Figure", alt: str, caption: str = "") -> Html:
    """A figure as a PNG inside the page.

    Args:
      figure: Of matplotlib.
      alt: For those who do not see it.
      caption: Under it.
    """
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150, facecolor="white")
    data = base64.b64encode(png.getvalue()).decode()
    image = Html(f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">')
    return tag("figure", image, tag("figcaption", caption) if caption else "")


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of every leaf of nested dicts; a list is one leaf."""
    if isinstance(value, dict) and value:
        items = ((f"{prefix}.{key}" if prefix else str(key), v) for key, v in value.items())
        return [leaf for key, v in items for leaf in flat(v, key)]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(map(str, value)) or "–")]
    return [(prefix, "–" if value is None or value == {} else str(value))]


def page(title: str, *parts: object) -> str:
    """The whole document: no script, no address outside of it."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{tag('title', title)}\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        f"{tag('h1', title)}\n{join(parts)}\n</body>\n</html>\n"
    )
