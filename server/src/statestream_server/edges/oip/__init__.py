"""The Open Inference Protocol, version 2: a translation to runs of models and steps of sessions, and nothing more."""
