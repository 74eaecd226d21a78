"""What was running when a server process died, and what becomes of it."""
