"""A simulation of the real code: client, edges, sessions and engine of several processes on one deterministic loop.

Replaced are the loop, the clocks, the draws, the network and the store's process (replaced.py lists it name by name);
all else is what is shipped. Everything that could go one way or another is drawn from one seed.
"""
