"""What comes for sessions: chunks that are checked, coalesced, counted and queued."""
