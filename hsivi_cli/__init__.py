"""hsivi: diffusion samplers of a few network calls, distilled without data (HSIVI, arXiv
2310.17153).
"""

__version__ = "0.1.0"
