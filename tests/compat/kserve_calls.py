"""What tests/compat/test_kserve.py runs in an environment of its own: kserve's clients, unchanged, against a server."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig


def step(number: int, sequence: str, *, binary: bool = False) -> Any:
    """One of the three steps of a sequence."""
    x = InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.ones((1, 1), np.float32), binary_data=binary)
    ends = {"sequence_id": sequence, "sequence_start": not number, "sequence_end": number == 2}
    return InferRequest("counter", [x], request_id=f"{sequence}-{number}", parameters=ends)


async def main(grpc_at: str, http_at: str) -> None:
    """Prints what every call was answered."""
    rest, base = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{http_at}"
    print(
        *[await rest.is_server_live(base), await rest.is_server_ready(base), await rest.is_model_ready(base, "counter")]
    )
    for form, binary in (("json", False), ("bytes", True)):
        for number in range(3):
            answer: Any = await rest.infer(base, step(number, form, binary=binary), model_name="counter")
            print(form, answer.outputs[0].as_numpy().tolist())
    async with InferenceGRPCClient(url=grpc_at) as client:
        print(*[await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready("counter")])
        for number in range(3):
            told: Any = await client.infer(step(number, "grpc"))
            print("grpc", told.outputs[0].as_numpy().tolist())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
