"""Stores: where sessions survive the process that steps them."""
