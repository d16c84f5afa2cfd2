"""report.html: the report as one page that needs no network, readable on a phone, in the dark and on paper.

`render.py` puts it together; `answers.py` holds the five answers that come first, `charts.py` and `frontier.py` the
geometry of the plots, `sections.py` what is shown of the parts that a report may lack.
"""

from __future__ import annotations

from .render import page_of, read_plan, write_html

__all__ = ["page_of", "read_plan", "write_html"]
