"""hsivi: diffusion samplers of a few network calls, distilled without data (HSIVI, arXiv
2310.17153).

    from hsivi_cli import HSIVIPipeline
"""

__version__ = "0.1.0"
__all__ = ["HSIVIPipeline"]


def __getattr__(name: str):
    if name == "HSIVIPipeline":  # imported when asked for, as it loads torch
        from .models.student import HSIVIPipeline

        return HSIVIPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
