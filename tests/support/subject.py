"""The model under test, as its server describes it, and random inputs for it."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import numpy as np

from statestream.signature import Signature, TensorSpec, step_shape
from statestream.v1 import model_pb2, model_pb2_grpc


@dataclass
class Subject:
    """The session model under test, as ModelService describes it."""

    name: str
    signature: Signature

    @classmethod
    async def find(cls, channel: grpc.aio.Channel, name: str) -> Subject:
        found = await model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest(name=name))
        return cls(name, found.model.signature)

    def random(self, steps: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Inputs [steps, ...one step]."""
        rng = np.random.default_rng(seed)
        return {spec.name: random_steps(spec, steps, rng) for spec in self.signature.inputs}


def random_steps(spec: TensorSpec, steps: int, rng: np.random.Generator) -> np.ndarray:
    shape = (steps, *(size if size > 0 else 1 for size in step_shape(spec)))
    if spec.dtype.startswith(("int", "uint")):
        return rng.integers(0, 3, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)
