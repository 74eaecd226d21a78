"""Data that recipes learn from: found in a folder, fetched, or built in. Nothing here knows of models."""
