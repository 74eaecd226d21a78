"""Random input of every kind that a server reads, against real servers on both edges: `python -m tests.fuzz`."""
