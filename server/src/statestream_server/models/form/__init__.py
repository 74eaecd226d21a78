"""The normal form of a file: which of its tensors are memory, and what its graph needs so that it can be served."""
