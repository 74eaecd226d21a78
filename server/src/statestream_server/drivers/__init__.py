"""Drivers: loops on the server that step rows on somebody's behalf."""
