"""What is done to a store beside its servers: backup, restore, check, erasure."""
