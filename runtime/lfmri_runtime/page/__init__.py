"""One self-contained HTML page that shows volumes side by side: `pictures` makes the slices, `document` the page."""

from lfmri_runtime.page.document import write_page
from lfmri_runtime.page.pictures import Panel

__all__ = ["Panel", "write_page"]
