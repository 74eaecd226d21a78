"""Graphs: ONNX graphs rewritten, and what runs them. One module imports onnxruntime: runtime."""
