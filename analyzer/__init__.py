"""mailhop: where is my message, and where did the time go, told from packets.

import analyzer
analysis = analyzer.analyze("captures/story.pcapng")
analysis.messages            # one pandas DataFrame per table
analysis.trace("<id@host>")  # one message's timeline
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyzer.analysis import Analysis, analyze
    from analyzer.extraction import extract

__version__ = "0.1.0"
__all__ = [
    "Analysis",
    "CaptureError",
    "ExpressionError",
    "KeyLogError",
    "Limits",
    "MailhopError",
    "MessageNotFound",
    "__version__",
    "analyze",
    "capture",
    "extract",
]

_HOME = {
    "analyze": "analyzer.analysis",
    "Analysis": "analyzer.analysis",
    "capture": "analyzer.live",
    "extract": "analyzer.extraction",
    "Limits": "analyzer.limits",
    "MailhopError": "analyzer.errors",
    "ExpressionError": "analyzer.errors",
    "CaptureError": "analyzer.errors",
    "KeyLogError": "analyzer.errors",
    "MessageNotFound": "analyzer.errors",
}


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used: the command must start without numpy or pandas."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
