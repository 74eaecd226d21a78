"""Files: the models folder, and what its ONNX files say of themselves. Nothing is run here."""
