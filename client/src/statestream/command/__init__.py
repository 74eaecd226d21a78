"""The command `statestream`. Its libraries are in the extra `cli`, and nothing else of the client imports this."""
