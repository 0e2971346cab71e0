"""The HTML document around every page: one frame, one style.

A page loads nothing: a content security policy forbids every fetch, and allows no script but the one given, by its
hash.
"""

import base64
import hashlib
from html import escape
from pathlib import Path
from string import Template

from lfmri_runtime.files import write_text

FOLDER = Path(__file__).parent


def write_frame(path: Path, *, title: str, content: str, data: str = "", script: str = "") -> None:
    """Write a page, whole or not at all.

    Args:
        path: the HTML file.
        title: its heading; escaped here.
        content: HTML inside `main`, with everything from outside escaped.
        data: JSON that the script reads from the element `pictures`.
        script: the one that may run; none where it is empty.

    Raises:
        TryAgainLater: as `files.atomic_write`.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    scripts = f'<script type="application/json" id="pictures">{data}</script>\n<script>{script}</script>\n'
    page = Template((FOLDER / "frame.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        content=content,
        script_policy=f"script-src 'sha256-{digest}'; " if script else "",
        scripts=scripts if script else "",
    )
    write_text(path, page)
