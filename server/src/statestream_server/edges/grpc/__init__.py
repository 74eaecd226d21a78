"""The gRPC edge: messages in, calls of the middle, messages out. No rules live here."""
