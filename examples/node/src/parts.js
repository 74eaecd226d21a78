// Answers that are too large for one message: their parts, put together.

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
   * @returns {any} the answer as a `ResultFrame`, with the last part
   */
  take(frame, part) {
    const key = `${frame}/${part.handle}/${part.position}`;
    const parts = part.part === 0 ? [] : (this.open.get(key) ?? []);
    parts.push(part);
    this.open.set(key, parts);
    if (parts.length < part.parts) return undefined;
    this.open.delete(key);
    const [{ outputs, steps, handle, position }] = parts;
    const bytes = Buffer.concat(parts.map(({ data }) => data));
    let start = 0;
    const whole = outputs.map((/** @type {any} */ { name, dtype, shape }) => {
      const size = tensorBytes(dtype, shape);
      start += size;
      return { name, dtype, shape, data: bytes.subarray(start - size, start) };
    });
    const column = Buffer.alloc(20);
    column.writeUInt32LE(handle, 0);
    column.writeBigUInt64LE(BigInt(position), 4);
    column.writeBigUInt64LE(BigInt(part.durable_position), 12);
    return {
      ...{ handles: column.subarray(0, 4), positions: column.subarray(4, 12), durable_positions: column.subarray(12) },
      ...{ steps, lengths: Buffer.alloc(0), outputs: whole, errors: [] },
    };
  }
}

/** @param {string} dtype @param {number[]} shape */
function tensorBytes(dtype, shape) {
  const bits = Number(/\d+$/.exec(dtype)?.[0] ?? 8);
  return shape.reduce((product, axis) => product * axis, bits / 8);
}
