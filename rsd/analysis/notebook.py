"""A comparison in a notebook."""

from rsd.analysis.compare import Comparison
from rsd.analysis.packed import well_formed
from rsd.analysis.report import templates
from rsd.analysis.verdict import correctness, verdict
from rsd.scoring.metrics import METRICS


def scores_table(c: Comparison) -> str:
    """The verdict and the table of all scores as HTML, everything escaped, that brings its styles along."""
    page = templates().get_template("notebook.html")
    return well_formed(page.render(c=c, verdict=verdict(c, correctness(c.pairs)), metrics=METRICS))
