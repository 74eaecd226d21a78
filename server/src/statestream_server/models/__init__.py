"""Models: ONNX files as things that run, and their memory as rows."""
