"""What both sides of the wire agree on, without gRPC: errors, signatures, tensors. Server and exporter import no more.

The messages are in `statestream.v1`. Nothing here knows of clients, servers, connections or files.
"""
