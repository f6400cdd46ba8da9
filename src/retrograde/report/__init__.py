"""The report on a training run: one HTML page that needs nothing else."""

from retrograde.report.page import render

__all__ = ["render"]
