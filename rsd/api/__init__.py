"""What the commands do, from Python: one function each. Heavy imports wait until one is called.

A source is the path of a file or of a data set, as in the command, or rows: dicts, `Trace`s, a DataFrame of pandas, a
Dataset of datasets (`rsd.traces.given`). Settings are those of the command, as keywords; they amend `config`, if
that is given, too. What a user can get wrong is a ValueError of one line.
"""

from rsd.api.comparing import compare, select
from rsd.api.examining import doctor
from rsd.api.judging import score, verify, weigh
from rsd.api.making import export, generate
from rsd.api.tailoring import tailor

__all__ = ["compare", "doctor", "export", "generate", "score", "select", "tailor", "verify", "weigh"]
