"""One self-contained HTML page: text in, markup out. Nothing here knows what is reported."""

import base64
import html
import json
import math
import pathlib

TYPES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg", ".mp4": "video/mp4"}

# The policy lets a browser load nothing but what the page holds itself.
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 media-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
"""

STYLE = """
:root { --ink: #1d2129; --soft: #5c6470; --line: #dfe2e7; --paper: #fff; --tint: #f5f6f8;
  --mark: #2563c9; --warn: #a34a00; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa3b0; --line: #343a44;
  --paper: #15181d; --tint: #1d2128; --mark: #7db0ff; --warn: #ffb26b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header, nav { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 22px; line-height: 1.25; margin: 0 0 8px; }
h3 { font-size: 16px; margin: 28px 0 8px; }
p { max-width: 74ch; margin: 8px 0; }
a { color: var(--mark); }
header p, small, figcaption, .note { color: var(--soft); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 12px 0;
  margin: 16px 0 0; border: solid var(--line); border-width: 1px 0; font-size: 15px; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { padding: 36px 0 8px; }
section + section { border-top: 1px solid var(--line); }
.scroll { overflow-x: auto; max-width: 100%; margin: 18px 0; }
figure .scroll { margin: 0; }
table { border-collapse: collapse; font-size: 14px; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 6px; }
th { color: var(--soft); font-weight: 500; vertical-align: bottom;
  border-bottom: 1px solid var(--soft); }
th, td { padding: 6px 0 6px 16px; text-align: right; }
td { vertical-align: top; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 10ch; max-width: 46ch; }
th:first-child, td:first-child { min-width: 13ch; max-width: 24ch; position: sticky; left: 0;
  background: var(--paper); }
td small { font-size: 12px; }
.beside { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 8px 28px;
  align-items: start; }
.beside > * { min-width: 0; }
.paper table { font-size: 12.5px; color: var(--soft); }
.paper td, .paper th { padding-left: 10px; white-space: nowrap; min-width: 0 !important; }
.paper td:first-child, .paper th:first-child { padding-left: 0; }
.note { font-size: 14px; }
.found { border-left: 3px solid var(--mark); background: var(--tint); padding: 8px 14px;
  margin: 12px 0; max-width: 80ch; border-radius: 0 4px 4px 0; }
.found.warn { border-color: var(--warn); }
.found p { margin: 2px 0; }
.figures { display: flex; flex-wrap: wrap; gap: 16px 32px; align-items: flex-start; }
.figures > figure { flex: 0 1 auto; min-width: 0; max-width: 100%; }
figure { margin: 12px 0 20px; }
figcaption { font-size: 14px; margin-top: 6px; max-width: 74ch; }
figure b { display: block; font-size: 14px; margin-bottom: 4px; }
figure img, figure video { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figure .wide img { max-width: max(100%, 640px); }
figure video { margin-bottom: 10px; background: #14161b; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
details { margin: 8px 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--tint); padding: 12px; border-radius: 4px; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { color: var(--soft); font-size: 13px; padding: 24px 0 48px; }
@media (max-width: 1160px) { .beside { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 640px) { main, header, nav { padding: 0 16px; } header { padding-top: 24px; }
  h1 { font-size: 25px; } th, td { padding-left: 14px; } }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --tint: #f4f4f4; }
  body { font-size: 11pt; } nav { display: none; } .scroll { overflow: visible; }
  h2, h3, caption { break-after: avoid; } figure, tr, .found { break-inside: avoid; }
  td { white-space: normal; } a { color: inherit; text-decoration: none; } }
"""


def page(title, subtitle, sections):
    """Joins sections into a page with a table of contents.

    Args:
      title, subtitle: text.
      sections: [(heading, markup)].

    Returns:
      The HTML, which refers to nothing outside itself.
    """
    names = [f"section-{i}" for i in range(len(sections))]
    pairs = list(zip(names, sections, strict=True))
    contents = "".join(f'<li><a href="#{n}">{text(h)}</a></li>' for n, (h, _) in pairs)
    bodies = "".join(
        f'<section id="{n}">\n<h2>{text(heading)}</h2>\n{body}</section>\n'
        for n, (heading, body) in pairs
    )
    return (
        f"{HEAD}<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(title)}</h1>\n<p>{text(subtitle)}</p></header>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n<main>\n{bodies}'
        "<footer>Made by python -m lawm_jax.report.</footer>\n</main>\n</body>\n</html>\n"
    )


def text(x):
    """Escapes text; what no UTF-8 can hold, such as parts of odd file names, becomes "?"."""
    return html.escape(str(x)).encode("utf-8", "replace").decode()


def paragraph(x, kind=""):
    """Makes a paragraph of a text; `kind` is "" or "note"."""
    return f"<p{f' class={kind}' if kind else ''}>{text(x)}</p>\n"


def found(sentences, warn=False):
    """Sets off what can be concluded: a paragraph per sentence, or nothing where there is none."""
    body = "".join(map(paragraph, sentences))
    return f'<div class="found{" warn" if warn else ""}">{body}</div>\n' if body else ""


def number(x, digits=3, sign=""):
    """Writes a number, or an interval as "0.806 [0.791, 0.822]"; anything else as a dash.

    Args:
      x: number, or {"mean", "low", "high"} whose low and high may be None or missing.
      digits: after the point.
      sign: "+" for differences.
    """
    if isinstance(x, dict):
        mean, low, high = (number(x.get(key), digits, sign) for key in ("mean", "low", "high"))
        return mean if "–" in (low, high) else f"{mean} <small>[{low}, {high}]</small>"
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        return "–"
    shown = f"{x:{sign},.{digits}f}"
    return shown.replace(",", "\u202f").replace("-", "−")


def table(columns, rows, caption="", kind=""):
    """Makes a table that scrolls within itself; columns that no row fills are left out.

    Args:
      columns: [(heading, digits)]: digits after the point, "+3" for signed ones, None for text.
      rows: one list per row, of text, numbers, intervals or None.
      caption: text above.
      kind: "paper" for figures to compare with.
    """
    filled = [
        j for j in range(len(columns)) if j == 0 or any(row[j] not in (None, "") for row in rows)
    ]

    def cell(tag, j, x):
        digits = columns[j][1]
        if digits is None or tag == "th":
            shown = text("–" if x is None else x)
        else:
            shown = number(x, int(str(digits).lstrip("+")), "+" if "+" in str(digits) else "")
        scope, left = ' scope="col"' if tag == "th" else "", ' class="text"'
        return f"<{tag}{scope}{left if digits is None else ''}>{shown}</{tag}>"

    head = "".join(cell("th", j, columns[j][0]) for j in filled)
    body = "".join(f"<tr>{''.join(cell('td', j, row[j]) for j in filled)}</tr>\n" for row in rows)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll {kind}" tabindex="0"><table>{title}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def beside(left, right):
    """Sets two pieces next to each other where there is room."""
    return f'<div class="beside"><div>{left}</div><div>{right}</div></div>\n'


def drawing(svg, caption, title=""):
    """Makes a figure of SVG, no wider than drawn and never so narrow that its text can't be read.

    Args:
      svg: as of `figures.capacity(None, ...)`; its width is in points.
      caption, title: text.
    """
    wide = float(svg.split('width="', 1)[1].split("pt", 1)[0]) * 4 / 3
    style = f"width: {wide:.0f}px; max-width: max(100%, {0.68 * wide:.0f}px)"
    head = f"<b>{text(title)}</b>" if title else ""
    return (
        f'<figure>{head}<div class="scroll"><div style="{style}" role="img" '
        f'aria-label="{text(caption)}">{svg}</div></div><figcaption>{text(caption)}</figcaption>'
        "</figure>\n"
    )


def media(paths, caption, title, wide=False):
    """Makes a figure of pictures and films, which the page holds as data: URIs.

    Args:
      paths: of files with a suffix in TYPES, to show under each other.
      caption, title: text.
      wide: on a narrow screen, scrolls pictures instead of shrinking them.
    """
    shown, label = "", text(f"{title}. {caption}")
    for path in map(pathlib.Path, paths):
        kind = TYPES[path.suffix.lower()]
        data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        if kind.startswith("video/"):
            shown += (
                '<video controls loop muted playsinline preload="metadata" '
                f'aria-label="{label}" src="{data}"></video>\n'
            )
        else:
            image = f'<img alt="{label}" src="{data}">'
            shown += f'<div class="scroll wide">{image}</div>\n' if wide else image
    return f"<figure><b>{text(title)}</b>{shown}<figcaption>{text(caption)}</figcaption></figure>\n"


def folded(summary, value):
    """Makes a block that opens on a click, of a JSON-able value."""
    shown = text(json.dumps(value, indent=1, ensure_ascii=False))
    return f"<details><summary>{text(summary)}</summary><pre>{shown}</pre></details>\n"
