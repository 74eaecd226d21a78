// grpc-js against a server: node caller.js ADDRESS PROTOS GOOGLE; says "well" or throws. tests/server/edges/test_clients.py
"use strict";
const assert = require("assert");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos, google] = process.argv.slice(2);
const options = { includeDirs: [protos, google], keepCase: true, longs: Number };
const files = ["statestream/v1/inference.proto", "statestream/v1/server.proto"];
const { statestream } = grpc.loadPackageDefinition(loader.loadSync(files, options));
const credentials = grpc.credentials.createInsecure();
const about = new statestream.v1.ServerService(address, credentials);
const inference = new statestream.v1.InferenceService(address, credentials);
const call = (client, name, request, more = {}) =>
  new Promise((resolve, reject) => client[name](request, more, (error, answer) => (error ? reject(error) : resolve(answer))));
const x = { name: "x", dtype: "float32", shape: [1, 1], data: Buffer.from(new Float32Array([1]).buffer) };

async function main() {
  assert((await call(about, "GetServerInfo", {})).limits.max_message_bytes > 0);
  for (let position = 0; position < 50; position++) {
    const answer = await call(inference, "Step", { model: "counter", session_id: "grpc-js", position, inputs: [x] });
    assert.strictEqual(answer.position, position + 1);
  }
  await assert.rejects(call(inference, "Predict", { model: "nothing" }), { code: grpc.status.NOT_FOUND });
  await assert.rejects(call(inference, "Predict", { model: "scores", inputs: [{ ...x, data: Buffer.alloc(20 << 20) }] }), {
    code: grpc.status.RESOURCE_EXHAUSTED,
  });
  const stream = inference.Stream();
  const answers = stream[Symbol.asyncIterator]();
  stream.write({ frame: 1, open: { model: "counter", handles: Buffer.alloc(4), ids: ["js"], writer: Buffer.alloc(16), incarnation: 1 } });
  assert((await answers.next()).value.opened);
  for (let position = 0; position < 200; position++) {
    const positions = Buffer.alloc(8);
    positions.writeBigUInt64LE(BigInt(position));
    stream.write({ frame: position + 2, chunk: { handles: Buffer.alloc(4), positions, acked_positions: positions, steps: 1, inputs: [x] } });
    let answer;
    do answer = (await answers.next()).value; while (!answer.result);
    assert.strictEqual(answer.result.outputs[0].data.readFloatLE(), position + 1);
  }
  stream.end();
  while (!(await answers.next()).done);
  const ended = (begun) => new Promise((resolve) => begun.on("error", (error) => resolve(error.code)).on("data", () => {}));
  assert.strictEqual(await ended(inference.Stream({ deadline: Date.now() + 50 })), grpc.status.DEADLINE_EXCEEDED);
  const left = inference.Stream();
  setTimeout(() => left.cancel(), 20);
  assert.strictEqual(await ended(left), grpc.status.CANCELLED);
  console.log("well");
  process.exit(0);
}
main().catch((error) => {
  console.error(error);
  process.exit(1);
});
