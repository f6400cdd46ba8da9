"""Comparisons with peers: the time of each gradient beside its error, in one run. Timings never fail a test."""
