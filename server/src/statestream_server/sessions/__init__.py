"""Sessions: the rules by which chunks, claims and records stay exactly once."""
