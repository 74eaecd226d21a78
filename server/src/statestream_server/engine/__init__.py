"""The engine: rows, queues and batches. No gRPC, files or clocks, but for the engine's own stopwatch."""
