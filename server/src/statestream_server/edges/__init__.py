"""The edges: how callers reach the server, a folder for each protocol. They call the middle; it knows none of them."""
