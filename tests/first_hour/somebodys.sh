# One command, beside which somebodys.py runs.
statestream serve somebodys.onnx
