"""The console: a page of the HTTP port where people look at models, sessions and batches, and try them."""
