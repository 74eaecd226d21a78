"""An .onnx file of somebody else's, which one command serves."""

import statestream

with statestream.connect("localhost:8001") as client:
    print(client.models()[0])
    with client.session("somebodys") as session:
        for x in ([1.0, 2.0], [3.0, 4.0]):
            print(session.step(x))
