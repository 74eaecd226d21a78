"""What hostile and careless callers do to a real server, beside a victim that must not feel it.

`make test` counts: what work one turn of the loop does, how much memory the server takes, what it says. `make attack`
also measures how long the longest turn was, and how long the victim waited.
"""
