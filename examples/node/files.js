// Runs files through sessions, exactly once: node files.js ADDRESSES MODEL FOLDER [step | chunk | stream | mixed]
//
// FOLDER/NAME.in has the inputs of session NAME, float32, one step after the other; FOLDER/NAME.out gets its outputs.
// Kill the server, or this program, or both, and start them again: every output is written once, in its order.
import fs from 'node:fs';
import path from 'node:path';

import { connect } from './src/index.js';

const [addresses, model, folder, way = 'stream'] = process.argv.slice(2);
const WAYS = ['step', 'chunk', 'stream'];
if (!folder) {
  console.error('usage: node files.js ADDRESSES MODEL FOLDER [step | chunk | stream | mixed]');
  process.exit(2);
}

let stopped = false;
let steps = 0;
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    if (stopped) process.exit(130); // Whoever asks twice does not want to wait for the server.
    stopped = true;
  });
}

/** Writes what is not written yet. */
function append(/** @type {number} */ file, /** @type {number} */ position, /** @type {any} */ outputs) {
  const [{ shape, data }] = /** @type {any[]} */ (Object.values(outputs));
  const step = data.byteLength / shape[0];
  const written = fs.fstatSync(file).size / step;
  // After a crash of both, steps that were written and not durable run again: the same bits, and written already.
  const bytes = Buffer.from(data.buffer).subarray(Math.max(0, written - position) * step);
  if (position > written) throw new Error(`outputs ${written} to ${position} are lost`);
  fs.writeSync(file, bytes);
  steps += bytes.length / step;
}

/** @param {import('./src/index.js').Client} client @param {string} name @param {string} how */
async function run(client, name, how) {
  const bytes = fs.readFileSync(path.join(folder, `${name}.in`));
  const inputs = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const file = fs.openSync(path.join(folder, `${name}.out`), 'a+');
  const session = await client.open(model, name, { replies: true });
  const width = session.signature.inputs[0].step.reduce((product, axis) => product * axis, 1);
  for (const { position, outputs } of session.replies) append(file, position, outputs);
  let at = session.position;
  const left = function* () {
    for (let from = at * width; from < inputs.length && !stopped; from += width) yield inputs.subarray(from, from + width);
  };
  /** @param {any} outputs */
  const one = (outputs) => {
    const [{ shape }] = /** @type {any[]} */ (Object.values(outputs));
    shape.unshift(1);
    append(file, at++, outputs);
  };
  if (how === 'stream') {
    for await (const outputs of session.stream(left())) one(outputs);
  } else if (how === 'step') {
    for (const input of left()) one(await session.step(input));
  } else {
    while (at * width < inputs.length && !stopped) {
      const chunk = inputs.subarray(at * width, (at + 1 + Math.floor(Math.random() * 40)) * width);
      append(file, at, await session.chunk(chunk));
      at += chunk.length / width;
    }
  }
  await session.close();
  fs.closeSync(file);
}

try {
  const client = await connect(addresses, { retryTimeout: 60 });
  const names = fs.readdirSync(folder).filter((file) => file.endsWith('.in')).map((file) => file.slice(0, -3));
  const telling = setInterval(() => console.log(steps), 50);
  const runs = names.map((name, at) => run(client, name, way === 'mixed' ? WAYS[at % 3] : way));
  const failed = (await Promise.allSettled(runs)).flatMap((one) => (one.status === 'rejected' ? [one.reason] : []));
  clearInterval(telling);
  await client.close();
  if (failed.length) throw failed[0];
  console.log(`${steps} steps of ${names.length} sessions${stopped ? ', stopped' : ''}`);
} catch (error) {
  const { reason, message, stack } = /** @type {any} */ (error);
  console.error(reason ? `${reason}: ${message}` : stack);
  process.exitCode = 1;
}
