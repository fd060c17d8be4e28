"""The page of a report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

_STYLE = """
:root { --ink: #1f2a37; --muted: #6b7785; --rule: #e6e9ed; --tint: #f7f8fa; --accent: #2f5d8a; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: 24px; font-weight: 600; margin: 0 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 16px; font-weight: 600; margin: 44px 0 12px; }
p.sub { color: var(--muted); margin: 0 0 28px; overflow-wrap: anywhere; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 20px 24px; margin: 0 0 32px;
  padding: 20px 0; border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); }
dl.facts dt { color: var(--muted); font-size: 12.5px; }
dl.facts dd { margin: 2px 0 0; font-size: 20px; font-weight: 500; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; display: block; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 24px 32px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--muted); font-weight: 500; font-size: 12.5px; }
th, td { padding: 6px 16px 6px 0; border-bottom: 1px solid var(--rule); }
th.number, td.number { text-align: right; }
details { border-bottom: 1px solid var(--rule); padding: 8px 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--tint); padding: 16px; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
p.warning { color: #b3413a; }
@media (max-width: 480px) { .panels { grid-template-columns: 1fr; } main { padding: 24px 16px; } }
"""


def make_page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole HTML document. `title` and `subtitle` are text, `sections` are HTML made by the functions below."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body><main>\n'
        f'<h1>{_text(title)}</h1>\n<p class="sub">{_text(subtitle)}</p>\n{body}\n</main></body></html>\n'
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """The row of headline numbers: (label, value) pairs of text."""
    return (
        '<dl class="facts">' + "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in pairs) + "</dl>"
    )


def image(png: bytes, description: str) -> str:
    """A PNG as part of the page itself."""
    return f'<img alt="{_text(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def panels(images: Sequence[str]) -> str:
    """Small images side by side."""
    return f'<div class="panels">{"".join(f"<div>{item}</div>" for item in images)}</div>' if images else ""


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{_text(text)}</h2>"


def warning(text: str) -> str:
    """A sentence that should not be overlooked."""
    return f'<p class="warning">{_text(text)}</p>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text; every column but the first is of numbers."""
    if not rows:
        return ""
    kinds = ["", *[' class="number"'] * (len(header) - 1)]
    lines = ["".join(f"<th{kind}>{_text(cell)}</th>" for kind, cell in zip(kinds, header, strict=True))]
    lines += ["".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def document(name: str, content: str) -> str:
    """A text file that unfolds at a click."""
    return f"<details><summary>{_text(name)}</summary><pre>{_text(content)}</pre></details>"


def links(targets: Sequence[tuple[str, str]]) -> str:
    """A line of links: (text, address relative to the page)."""
    return "<p>" + " · ".join(f'<a href="{_text(address)}">{_text(text)}</a>' for text, address in targets) + "</p>"


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)
