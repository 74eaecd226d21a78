"""HTTP/2 under the table of gRPC's methods, by the library h2 and asyncio."""
