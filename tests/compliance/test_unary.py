"""Calls without a stream: Step, Forecast, Generate, Predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from statestream.signature import encode_text, step_shape
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, session_pb2
from tests.support.arrays import array_of, arrays_of, cut, same_bits, tensor
from tests.support.calls import DEADLINE, Caller, everything, failing
from tests.support.speaker import Speaker, fresh_id
from tests.support.subject import Subject, random_steps


async def _position(caller: Caller, model: str, name: str) -> int:
    request = session_pb2.GetSessionRequest(model=model, session_id=name)
    return int((await caller.sessions.GetSession(request)).session.position)


async def _of_kind(caller: Caller, kind: model_pb2.ModelKind) -> model_pb2.Model:
    models = (await caller.models.ListModels(model_pb2.ListModelsRequest())).models
    for model in models:
        if model.kind == kind and not model.error:
            return model
    pytest.skip(f"the server has no model of kind {model_pb2.ModelKind.Name(kind)}")


async def test_step_opens_and_continues(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """Step opens a session where there is none, then goes on where it stands: the same outputs as a stream's."""
    name, inputs = fresh_id(), subject.random(9)
    await speaker.open_one(fresh_id())
    streamed = await speaker.step(0, 0, inputs)
    parts = []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        response = await caller.step(subject.name, name, cut(inputs, start, end))
        assert response.position == end
        parts.append(arrays_of(response.outputs))
    assert same_bits(streamed.outputs, {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})


async def test_step_with_a_position_is_idempotent(caller: Caller, subject: Subject) -> None:
    """A request repeated with its position is answered by the reply of the first."""
    name, inputs = fresh_id(), subject.random(3)
    first = await caller.step(subject.name, name, inputs, position=0)
    again = await caller.step(subject.name, name, inputs, position=0)
    assert same_bits(arrays_of(first.outputs), arrays_of(again.outputs))
    assert again.position == 3
    other = pb.StepRequest(
        model=subject.name,
        session_id=name,
        position=0,
        inputs=[tensor(k, v) for k, v in subject.random(3, 5).items()],
    )
    assert (await failing(caller.inference.Step(other))).reason == "POSITION_CONFLICT"
    other.position = 8
    gap = await failing(caller.inference.Step(other))
    assert (gap.code, gap.metadata["expected_position"]) == ("OUT_OF_RANGE", "3")


async def test_step_with_a_request_id_is_idempotent(caller: Caller, subject: Subject) -> None:
    """Without positions, a request that repeats the name of the last one is answered by that one's reply."""
    name, inputs = fresh_id(), subject.random(2)
    first = await caller.step(subject.name, name, inputs, request_id="r-1")
    again = await caller.step(subject.name, name, inputs, request_id="r-1")
    assert same_bits(arrays_of(first.outputs), arrays_of(again.outputs))
    assert again.position == 2
    assert (await caller.step(subject.name, name, inputs, request_id="r-2")).position == 4
    assert await _position(caller, subject.name, name) == 4


async def test_the_next_step_acknowledges_the_one_before(caller: Caller, subject: Subject) -> None:
    """A caller without acknowledgements never fills its window: asking for more acknowledges what came."""
    name, inputs = fresh_id(), subject.random(1)
    for _ in range(3):
        await caller.step(subject.name, name, inputs)
    request = pb.StepRequest(
        model=subject.name, session_id=name, position=0, inputs=[tensor(k, v) for k, v in inputs.items()]
    )
    assert (await failing(caller.inference.Step(request))).reason == "ALREADY_APPLIED"


async def test_step_obeys_modes(caller: Caller, subject: Subject) -> None:
    """CREATE, RESUME and REPLACE mean for Step what they mean on a stream."""
    name, inputs = fresh_id(), subject.random(2)
    request = pb.StepRequest(
        model=subject.name, session_id=name, inputs=[tensor(k, v) for k, v in inputs.items()], mode=pb.OPEN_MODE_RESUME
    )
    assert (await failing(caller.inference.Step(request))).reason == "SESSION_NOT_FOUND"
    assert (await caller.step(subject.name, name, inputs, mode=pb.OPEN_MODE_CREATE)).position == 2
    request.mode = pb.OPEN_MODE_CREATE
    assert (await failing(caller.inference.Step(request))).reason == "SESSION_EXISTS"
    assert (await caller.step(subject.name, name, inputs, mode=pb.OPEN_MODE_REPLACE)).position == 2


async def test_step_takes_a_session_from_a_stream(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """A unary caller is a writer like any other: the stream that had the session is told."""
    name, inputs = fresh_id(), subject.random(2)
    await speaker.open_one(name)
    await speaker.step(0, 0, inputs)
    assert (await caller.step(subject.name, name, inputs)).position == 4
    await speaker.unasked(lambda: speaker.notices)
    assert speaker.notices[0].failure.reason == "SESSION_MOVED"


@pytest.mark.parametrize("steps", [0, 100_000])
async def test_step_refuses_a_chunk_of_a_wrong_length(caller: Caller, subject: Subject, steps: int) -> None:
    """One step at least, `max_chunk_steps` at most; a refused call steps nothing."""
    name = fresh_id()
    await caller.step(subject.name, name, subject.random(1))
    inputs = [
        tensor(spec.name, random_steps(spec, steps, np.random.default_rng(0))) for spec in subject.signature.inputs
    ]
    request = pb.StepRequest(model=subject.name, session_id=name, inputs=inputs)
    failure = await failing(caller.inference.Step(request))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "BAD_FRAME", ["inputs"])
    assert await _position(caller, subject.name, name) == 1


async def test_forecast_from_a_session_equals_feeding_back_by_hand(
    caller: Caller, subject: Subject, speaker: Speaker
) -> None:
    """A forecast's first step is the session's last output; each output is the next input. The session stays."""
    if not subject.signature.feedback:
        pytest.skip("the model has no feedback")
    name, horizon = fresh_id(), 7
    await speaker.open_one(name)
    answer = await speaker.step(0, 0, subject.random(12))
    request = pb.ForecastRequest(model=subject.name, session_id=name, horizon=horizon)
    found = await everything(caller.inference.Forecast(request, timeout=DEADLINE))
    twice = await everything(caller.inference.Forecast(request, timeout=DEADLINE))
    assert await _position(caller, subject.name, name) == 12
    forecast = {key: np.concatenate([arrays_of(m.outputs)[key][0] for m in found]) for key in answer.outputs}
    assert [message.offset for message in found] == sorted({message.offset for message in found})
    steps = [arrays_of(message.outputs)[key].shape[1] for message in found for key in forecast]
    assert sum(steps) == horizon * len(forecast)
    by_hand, position = [{key: array[-1:] for key, array in answer.outputs.items()}], 12
    while len(by_hand) < horizon:
        inputs = {feedback.input: by_hand[-1][feedback.output] for feedback in subject.signature.feedback}
        step = await speaker.step(0, position, inputs)
        by_hand.append(step.outputs)
        position += 1
    for key, array in forecast.items():
        np.testing.assert_array_equal(array, np.concatenate([step[key] for step in by_hand]))
        np.testing.assert_array_equal(array, np.concatenate([arrays_of(m.outputs)[key][0] for m in twice]))


async def test_forecast_from_histories_equals_sessions(caller: Caller, subject: Subject, speaker: Speaker) -> None:
    """Series of a history are warmed up as fresh sessions would be, side by side."""
    if not subject.signature.feedback:
        pytest.skip("the model has no feedback")
    series = [subject.random(10, seed) for seed in (1, 2, 3)]
    history = pb.History(
        inputs=[tensor(key, np.stack([one[key] for one in series])) for key in series[0]],
    )
    request = pb.ForecastRequest(model=subject.name, history=history, horizon=5)
    found = await everything(caller.inference.Forecast(request, timeout=DEADLINE))
    for place, one in enumerate(series):
        name = fresh_id()
        await speaker.open_one(name, place)
        await speaker.step(place, 0, one)
        alone = pb.ForecastRequest(model=subject.name, session_id=name, horizon=5)
        expected = await everything(caller.inference.Forecast(alone, timeout=DEADLINE))
        for key in arrays_of(found[0].outputs):
            np.testing.assert_array_equal(
                np.concatenate([arrays_of(m.outputs)[key][place] for m in found]),
                np.concatenate([arrays_of(m.outputs)[key][0] for m in expected]),
            )


async def test_forecast_refuses_what_it_cannot_do(caller: Caller, subject: Subject) -> None:
    """No source, no horizon, an unknown session: an error, never an empty forecast."""
    if not subject.signature.feedback:
        pytest.skip("the model has no feedback")
    stub = caller.inference
    none = await failing(everything(stub.Forecast(pb.ForecastRequest(model=subject.name, horizon=3))))
    assert (none.reason, none.fields) == ("BAD_FRAME", ["source"])
    unknown = pb.ForecastRequest(model=subject.name, session_id=fresh_id(), horizon=3)
    assert (await failing(everything(stub.Forecast(unknown)))).reason == "SESSION_NOT_FOUND"
    for horizon in (0, 2**31):
        request = pb.ForecastRequest(model=subject.name, session_id="x", horizon=horizon)
        assert (await failing(everything(stub.Forecast(request)))).fields == ["horizon"]
    name = fresh_id()
    await caller.sessions.OpenSession(session_pb2.OpenSessionRequest(model=subject.name, session_id=name))
    fresh = pb.ForecastRequest(model=subject.name, session_id=name, horizon=3)
    assert (await failing(everything(stub.Forecast(fresh)))).reason == "UNSUPPORTED"


async def test_predict_answers_all_or_the_wanted_outputs(caller: Caller) -> None:
    """Outputs keep the batch axis of the inputs, which may be 0 long; a batch equals its rows alone."""
    model = await _of_kind(caller, model_pb2.MODEL_KIND_PREDICT)
    specs, rng = model.signature.inputs, np.random.default_rng(1)
    assert all(spec.HasField("batch_axis") for spec in specs)

    def inputs(rows: int) -> dict[str, np.ndarray]:
        shapes = {s.name: [rows if a == s.batch_axis else max(n, 1) for a, n in enumerate(s.shape)] for s in specs}
        return {s.name: rng.standard_normal(shapes[s.name]).astype(s.dtype) for s in specs}

    async def predict(values: dict[str, np.ndarray], *outputs: str) -> dict[str, np.ndarray]:
        tensors = [tensor(name, array) for name, array in values.items()]
        request = pb.PredictRequest(model=model.name, inputs=tensors, outputs=outputs)
        return arrays_of((await caller.inference.Predict(request, timeout=DEADLINE)).outputs)

    five = inputs(5)
    together = await predict(five)
    assert list(together) == [spec.name for spec in model.signature.outputs]
    for row in range(5):
        one = await predict({s.name: np.take(five[s.name], [row], s.batch_axis) for s in specs})
        for spec in model.signature.outputs:
            np.testing.assert_allclose(
                one[spec.name], np.take(together[spec.name], [row], spec.batch_axis), rtol=1e-5, atol=1e-6
            )
    last = model.signature.outputs[-1].name
    assert list(await predict(five, last)) == [last]
    empty = await predict(inputs(0))
    assert all(empty[s.name].shape[s.batch_axis] == 0 for s in model.signature.outputs)


async def test_predict_refuses_models_with_memory_and_unknown_outputs(caller: Caller, subject: Subject) -> None:
    """UNSUPPORTED says what to call instead; an output that does not exist is BAD_TENSOR."""
    inputs = [tensor(name, array) for name, array in subject.random(1).items()]
    failure = await failing(caller.inference.Predict(pb.PredictRequest(model=subject.name, inputs=inputs)))
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "UNSUPPORTED")
    model = await _of_kind(caller, model_pb2.MODEL_KIND_PREDICT)
    zeros = [tensor(s.name, np.zeros([1 if n < 0 else n for n in s.shape], s.dtype)) for s in model.signature.inputs]
    request = pb.PredictRequest(model=model.name, inputs=zeros, outputs=["no-such-output"])
    assert (await failing(caller.inference.Predict(request))).fields == ["outputs"]
    wrong = pb.PredictRequest(model=model.name, inputs=[tensor("no-such-input", np.zeros(1, np.float32))])
    assert (await failing(caller.inference.Predict(wrong))).reason == "BAD_TENSOR"
    old = pb.PredictRequest(model=model.name, version=10**6, inputs=zeros)
    assert (await failing(caller.inference.Predict(old))).reason == "MODEL_NOT_FOUND"


async def test_generate_gives_symbols_of_the_vocabulary(caller: Caller) -> None:
    """A token with its symbol and a log-probability of at most 0; `max_tokens` cuts; the same text twice."""
    model = await _of_kind(caller, model_pb2.MODEL_KIND_GENERATE)
    source, decoding = model.encoder_signature.inputs[0].text, model.signature.decoding
    text = source.separator.join(list(source.vocabulary)[-3:])
    assert encode_text(source, text)
    whole = await _texts(caller, model=model.name, texts=[text])
    tokens, separator = list(whole[0].tokens), decoding.text.separator
    assert 0 < len(tokens) <= decoding.max_tokens
    assert decoding.end_token not in tokens
    assert whole[0].text == separator.join(decoding.text.vocabulary[token] for token in tokens)
    assert max(whole[0].log_probabilities) <= 0
    short = await _texts(caller, model=model.name, texts=[text], max_tokens=1)
    assert list(short[0].tokens) == tokens[:1]
    assert await _texts(caller, model=model.name, texts=[text]) == whole
    parts = await everything(caller.inference.Generate(pb.GenerateRequest(model=model.name, texts=[text], stream=True)))
    assert [token.token for part in parts for token in part.tokens] == tokens
    assert "".join(token.text for part in parts for token in part.tokens) == whole[0].text


async def test_generate_takes_tokens_in_place_of_text(caller: Caller) -> None:
    """The tokens of several sources, one after the other; beams and draws of each."""
    model = await _of_kind(caller, model_pb2.MODEL_KIND_GENERATE)
    words = model.encoder_signature.inputs[0].text
    sources = [list(range(len(words.vocabulary)))[-size:] for size in (2, 3)]
    given = {
        "tokens": np.asarray([*sources[0], *sources[1]], "<i8").tobytes(),
        "lengths": np.asarray([2, 3], "<u4").tobytes(),
    }
    texts = [words.separator.join(words.vocabulary[token] for token in source) for source in sources]
    assert await _texts(caller, model=model.name, **given) == await _texts(caller, model=model.name, texts=texts)
    search = pb.BeamSearch(num_beams=3, n_best=3)
    best = await _texts(caller, model=model.name, beam_search=search, **given)
    assert 2 <= len(best) <= 6
    sampling = pb.Sampling(num_samples=3, seed=5)
    drawn = await _texts(caller, model=model.name, sampling=sampling, **given)
    assert len(drawn) == 6
    assert await _texts(caller, model=model.name, sampling=sampling, **given) == drawn


async def test_generate_refuses_what_it_cannot_encode(caller: Caller, subject: Subject) -> None:
    """Nothing, no text, a model that is no encoder-decoder."""
    model = await _of_kind(caller, model_pb2.MODEL_KIND_GENERATE)
    nothing = await failing(everything(caller.inference.Generate(pb.GenerateRequest(model=model.name))))
    assert (nothing.code, nothing.reason, nothing.fields) == ("INVALID_ARGUMENT", "BAD_FRAME", ["texts"])
    empty = await failing(everything(caller.inference.Generate(pb.GenerateRequest(model=model.name, texts=[""]))))
    assert (empty.code, empty.reason, empty.fields) == ("INVALID_ARGUMENT", "BAD_TENSOR", ["texts"])
    other = await failing(everything(caller.inference.Generate(pb.GenerateRequest(model=subject.name, texts=["a"]))))
    assert other.reason == "UNSUPPORTED"


async def _texts(caller: Caller, **request: Any) -> list[pb.GeneratedText]:
    """What a call gives, source by source."""
    parts = await everything(caller.inference.Generate(pb.GenerateRequest(**request)))
    sources = sorted((source for part in parts for source in part.sources), key=lambda each: each.source)
    return [text for source in sources for text in source.texts]


async def test_outputs_are_named_typed_and_shaped_as_the_signature_says(caller: Caller, subject: Subject) -> None:
    """Tensors travel as little-endian bytes with name, dtype and shape [T, ...one step]."""
    response = await caller.step(subject.name, fresh_id(), subject.random(4))
    assert [message.name for message in response.outputs] == [spec.name for spec in subject.signature.outputs]
    for message, spec in zip(response.outputs, subject.signature.outputs, strict=True):
        array = array_of(message)
        assert message.dtype == spec.dtype
        assert array.shape[0] == 4
        assert all(want in (-1, size) for want, size in zip(step_shape(spec), array.shape[1:], strict=True))
