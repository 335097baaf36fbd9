"""Builds the markup of a self-contained HTML page, independent of the page's content."""

import base64
import html
import json
import math
import pathlib

TYPES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg", ".mp4": "video/mp4"}

# The security policy prevents the browser from loading any external resource.
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

STYLE = pathlib.Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def page(title, subtitle, sections):
    """Joins sections into a page with a table of contents.

    Args:
      title, subtitle: text.
      sections: [(heading, markup)].

    Returns:
      HTML, without references to external resources.
    """
    names = [f"section-{i}" for i in range(len(sections))]
    pairs = list(zip(names, sections, strict=True))
    contents = "".join(f'<li><a href="#{n}">{text(h)}</a></li>' for n, (h, _) in pairs)
    bodies = "".join(
        f'<section id="{n}">\n<h2>{text(heading)}</h2>\n{body}</section>\n'
        for n, (heading, body) in pairs
    )
    return (
        f"{HEAD}<title>{text(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(title)}</h1>\n<p>{text(subtitle)}</p></header>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n<main>\n{bodies}'
        "<footer>Made by python -m lawm_jax.report.</footer>\n</main>\n</body>\n</html>\n"
    )


def text(x):
    """Escapes text; replaces characters that UTF-8 cannot encode with "?"."""
    return html.escape(str(x)).encode("utf-8", "replace").decode()


def paragraph(x, kind=""):
    """Makes a paragraph; `kind`, its CSS class, is "" or "note"."""
    return f"<p{f' class={kind}' if kind else ''}>{text(x)}</p>\n"


def conclusions(sentences):
    """Makes a box of conclusions, one paragraph per sentence; "" if there are none."""
    body = "".join(map(paragraph, sentences))
    return f'<div class="found">{body}</div>\n' if body else ""


def number(x, digits=3, sign=""):
    """Formats a number, or an interval as "0.806 [0.791, 0.822]"; anything else as a dash.

    Args:
      x: number, or {"mean", "low", "high"} whose low and high may be None or missing.
      digits: number of decimals.
      sign: "+" for differences.
    """
    if isinstance(x, dict):
        mean, low, high = (number(x.get(key), digits, sign) for key in ("mean", "low", "high"))
        return mean if "–" in (low, high) else f"{mean} <small>[{low}, {high}]</small>"
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        return "–"
    formatted = f"{x:{sign},.{digits}f}"
    return formatted.replace(",", "\u202f").replace("-", "−")


def table(columns, rows, caption="", kind=""):
    """Makes a scrollable table, without the columns that are empty in all rows.

    Args:
      columns: [(heading, digits)]: number of decimals, "+3" for signed numbers, None for text.
      rows: one list per row, of text, numbers, intervals or None.
      caption: text above the table.
      kind: "paper" for the paper's results.
    """
    filled = [
        j for j in range(len(columns)) if j == 0 or any(row[j] not in (None, "") for row in rows)
    ]

    def cell(tag, j, x):
        digits = columns[j][1]
        if digits is None or tag == "th":
            content = text("–" if x is None else x)
        else:
            content = number(x, int(str(digits).lstrip("+")), "+" if "+" in str(digits) else "")
        scope, align = ' scope="col"' if tag == "th" else "", ' class="text"'
        return f"<{tag}{scope}{align if digits is None else ''}>{content}</{tag}>"

    head = "".join(cell("th", j, columns[j][0]) for j in filled)
    body = "".join(f"<tr>{''.join(cell('td', j, row[j]) for j in filled)}</tr>\n" for row in rows)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll {kind}" tabindex="0"><table>{title}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def beside(left, right):
    """Places two pieces of markup side by side if the screen is wide enough."""
    return f'<div class="beside"><div>{left}</div><div>{right}</div></div>\n'


def drawing(svg, caption, title=""):
    """Makes a figure of an SVG, at most as wide as drawn and wide enough for readable text.

    Args:
      svg: as returned by `figures.capacity(None, ...)`; its width is in points.
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
    """Makes a figure of pictures and videos, embedded as data: URIs.

    Args:
      paths: pathlib.Paths or epath.Paths of files with a suffix in TYPES, one below the other.
      caption, title: text.
      wide: whether pictures scroll on a narrow screen instead of shrinking.
    """
    body, label = "", text(f"{title}. {caption}")
    for path in paths:
        kind = TYPES[path.suffix.lower()]
        data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        if kind.startswith("video/"):
            body += (
                '<video controls loop muted playsinline preload="metadata" '
                f'aria-label="{label}" src="{data}"></video>\n'
            )
        else:
            image = f'<img alt="{label}" src="{data}">'
            body += f'<div class="scroll wide">{image}</div>\n' if wide else image
    return f"<figure><b>{text(title)}</b>{body}<figcaption>{text(caption)}</figcaption></figure>\n"


def folded(summary, markup):
    """Makes a collapsed block; "" if there is nothing in it."""
    return f"<details><summary>{text(summary)}</summary>{markup}</details>\n" if markup else ""


def source_code(value):
    """Makes a block that shows a JSON-serializable value."""
    return f"<pre>{text(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"
