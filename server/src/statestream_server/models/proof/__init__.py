"""Proof: a model is tried in a process of its own, and built where it serves by what was found."""
