"""Benchmarks: ours against raw ONNX Runtime, a bare echo and a first attempt, as ratios within one run."""
