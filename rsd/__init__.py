"""rsd: reasoning traces tailored to a small model, by reverse speculative decoding (arXiv 2509.22230)."""

from typing import TYPE_CHECKING, Any

from rsd.config import GenerateConfig, ScoreConfig
from rsd.version import __version__

if TYPE_CHECKING:
    from rsd.generation.generator import TraceGenerator
    from rsd.scoring.scorer import score
    from rsd.scoring.verify import verify
    from rsd.traces.trace import Trace

__all__ = ["GenerateConfig", "ScoreConfig", "Trace", "TraceGenerator", "__version__", "score", "verify"]


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; `rsd --help` must not wait for them.
    if name == "TraceGenerator":
        from rsd.generation.generator import TraceGenerator

        return TraceGenerator
    if name == "Trace":
        from rsd.traces.trace import Trace

        return Trace
    if name == "score":
        from rsd.scoring.scorer import score

        return score
    if name == "verify":
        from rsd.scoring.verify import verify

        return verify
    raise AttributeError(f"module 'rsd' has no attribute {name!r}")
