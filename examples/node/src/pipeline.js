// Steps under way one behind the other: inputs are read ahead, outputs come in their order.
import { toTensors } from './tensors.js';

/**
 * @param {import('./session.js').Session} session
 * @param {Iterable<any> | AsyncIterable<any>} inputs
 * @param {number} ahead how many steps may be on their way, or wait to be taken
 * @returns {AsyncGenerator<import('./session.js').Outputs, void, void>}
 */
export async function* pipeline(session, inputs, ahead) {
  /** @type {Promise<{ outputs: any, end: number }>[]} */
  const pending = [];
  const { drops } = session.log;
  let over = false;
  let news = () => {};
  let room = () => {};

  const read = async () => {
    try {
      for await (const input of inputs) {
        while (pending.length >= ahead && !over) await new Promise((resolve) => (room = () => resolve(undefined)));
        if (over) return;
        const answer = session.submit(toTensors(session.signature.inputs, input, true), { drops });
        answer.catch(() => {}); // Its consumer hears of it in its turn.
        pending.push(answer);
        news();
      }
    } finally {
      over = true;
      news();
    }
  };

  const reading = read();
  reading.catch(() => {}); // What the inputs, or one of them, threw is told behind the outputs before it.
  try {
    while (true) {
      while (!pending.length && !over) await new Promise((resolve) => (news = () => resolve(undefined)));
      if (!pending.length) break;
      const { outputs, end } = await pending[0];
      for (const tensor of Object.values(outputs)) /** @type {any} */ (tensor).shape.shift();
      yield outputs;
      session.acked = Math.max(session.acked, end);
      pending.shift();
      room();
    }
    await reading;
  } finally {
    over = true;
    room();
  }
}
