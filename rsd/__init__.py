"""rsd: reasoning traces tailored to a small model, by reverse speculative decoding (arXiv 2509.22230)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rsd.config import GenerateConfig
from rsd.dataset.config import ExportConfig
from rsd.examining.config import DoctorConfig
from rsd.scoring.config import ScoreConfig
from rsd.tailoring.config import TailorConfig
from rsd.version import __version__
from rsd.weighing.config import WeighConfig

if TYPE_CHECKING:
    from rsd.api import compare, doctor, export, generate, score, select, tailor, verify, weigh
    from rsd.generation.generator import TraceGenerator
    from rsd.tailoring.tailor import Tailor
    from rsd.traces.trace import Trace

__all__ = [
    "DoctorConfig",
    "ExportConfig",
    "GenerateConfig",
    "ScoreConfig",
    "Tailor",
    "TailorConfig",
    "Trace",
    "TraceGenerator",
    "WeighConfig",
    "__version__",
    "compare",
    "doctor",
    "export",
    "generate",
    "score",
    "select",
    "tailor",
    "verify",
    "weigh",
]
# torch and transformers take seconds to import: `rsd --help` must not wait for them.
_PLACES = {
    **dict.fromkeys(
        ("compare", "doctor", "export", "generate", "score", "select", "tailor", "verify", "weigh"), "rsd.api"
    ),
    "Tailor": "rsd.tailoring.tailor",
    "Trace": "rsd.traces.trace",
    "TraceGenerator": "rsd.generation.generator",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rsd' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
