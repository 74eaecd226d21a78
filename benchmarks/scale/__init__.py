"""Scale: a fleet of replicas and Redis shards, simulated with figures that were measured here."""
