"""Models: ONNX files as things that run, and their memory as rows. `model` and `rows` say what is loaded."""
