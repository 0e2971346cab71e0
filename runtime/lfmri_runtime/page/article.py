"""A self-contained page of text, tables and pictures, in the style of the comparison page; it runs no script."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lfmri_runtime.page.frame import write_frame


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: column heads, and rows of (text, whether it is strong)."""

    head: tuple[str, ...]
    rows: tuple[tuple[tuple[str, bool], ...], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: a heading, then what there is of paragraphs, table and PNG picture."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    table: Table | None = None
    picture: bytes | None = None


def write_article(path: Path, *, title: str, sections: Sequence[Section]) -> None:
    """Write the page, whole or not at all; whatever is given is escaped.

    Args:
        path: the HTML file.
        title: its heading.
        sections: in order.

    Raises:
        TryAgainLater: as `files.atomic_write`.
    """
    write_frame(path, title=title, content="\n".join(_section(section) for section in sections))


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>", _paragraphs(section.paragraphs)]
    if section.table is not None:
        parts.append(_table(section.table, section.heading))
    if section.picture is not None:
        data = base64.b64encode(section.picture).decode("ascii")
        parts.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(section.heading)}">'
            f'<img src="data:image/png;base64,{data}" alt="{escape(section.heading)}"></div>'
        )
    return f"<section>{''.join(parts)}</section>"


def _paragraphs(paragraphs: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(paragraph)}</p>' for paragraph in paragraphs)


def _table(table: Table, name: str) -> str:
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in table.head)
    rows = ""
    for (first, _), *cells in table.rows:
        shown = "".join(
            f"<td><strong>{escape(text)}</strong></td>" if strong else f"<td>{escape(text)}</td>"
            for text, strong in cells
        )
        rows += f'<tr><th scope="row">{escape(first)}</th>{shown}</tr>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
