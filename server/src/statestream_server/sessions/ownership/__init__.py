"""Whose sessions are, and where: claims, placement in rows, moves between versions, and how rows leave again."""
