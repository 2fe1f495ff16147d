"""The templates of the page, which escape all that they are given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rsd.analysis.figures import Difference, kind, number, well_formed
from rsd.scoring.metrics import METRICS


def template(name: str) -> Any:
    """A template of this package."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    made.filters["kind"] = kind
    made.filters["fragment"] = lambda key: quote(well_formed(key), safe="")
    return made.get_template(name)


def scores_table(
    names: Sequence[str],
    scoring: Mapping[str, Any],
    metrics: Mapping[str, Difference],
    rsr: Sequence[float | None],
    correct: Sequence[float | None],
) -> str:
    """All scores of a comparison as a table for a notebook, which brings its styles along."""
    sets = {"rsr": rsr, "correct": correct}
    page = template("notebook.html")
    return well_formed(page.render(names=names, scoring=scoring, found=metrics, metrics=METRICS, sets=sets))
