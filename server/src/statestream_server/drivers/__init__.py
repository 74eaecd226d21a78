"""Drivers: what runs models on a caller's behalf beside his sessions, bounded alike for every protocol."""
