# A model with memory over plain HTTP: two steps of one session, then its end.
ask() { curl --silent --fail-with-body "localhost:8002/v2/models/sunspots/infer" --json "$1" && echo; }
ask '{"parameters": {"sequence_id": "curl", "sequence_start": true}, "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [29.8]}]}'
ask '{"parameters": {"sequence_id": "curl", "sequence_end": true}, "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [15.2]}]}'
