"""Reports: one HTML page, on a training run or on a question asked of a connectome, that needs nothing else."""

from retrograde.report.answer import Answer, Figure
from retrograde.report.page import render

__all__ = ["Answer", "Figure", "render"]
