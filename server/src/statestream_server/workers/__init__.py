"""Several server processes on one port: started, watched, started again, told of changes, stopped together."""
