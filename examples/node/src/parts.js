// Answers that are too large for one message: their parts, put together.
import { stepBytes, u32, u64 } from './tensors.js';

const none = Buffer.alloc(0);
const NOTHING = { handles: none, positions: none, durable_positions: none, lengths: none, outputs: [], errors: [] };

/** What came so far; only a whole answer counts. */
export class Parts {
  constructor() {
    /** @type {Map<string, any[]>} */
    this.open = new Map();
  }

  clear() {
    this.open.clear();
  }

  /**
   * @param {number} frame
   * @param {any} part a `PartFrame`
   * @returns {any} the whole answer as a `ResultFrame`, with the last part; before it an empty one
   */
  take(frame, part) {
    const key = `${frame}/${part.handle}/${part.position}`;
    const parts = part.part === 0 ? [] : (this.open.get(key) ?? []);
    parts.push(part);
    this.open.set(key, parts);
    if (parts.length < part.parts) return NOTHING;
    this.open.delete(key);
    const [{ outputs, steps, handle, position }] = parts;
    const bytes = Buffer.concat(parts.map(({ data }) => data));
    let start = 0;
    const whole = outputs.map((/** @type {any} */ { name, dtype, shape }) => {
      const size = stepBytes({ name, dtype, step: shape });
      start += size;
      return { name, dtype, shape, data: bytes.subarray(start - size, start) };
    });
    return {
      ...{ handles: u32([handle]), positions: u64([position]), durable_positions: u64([part.durable_position]) },
      ...{ steps, lengths: none, outputs: whole, errors: [] },
    };
  }
}
