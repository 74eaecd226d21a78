// The log of one session: every chunk that its caller may still have to hear of, or that may have to be sent again.
import { StatestreamError } from './errors.js';

/**
 * A chunk as it was cut, or a mark: it is sent again as it is, because the server compares.
 * @typedef {object} Chunk
 * @property {number} position where it starts
 * @property {number} steps how many steps; 0 of a mark
 * @property {number} end where the next one starts
 * @property {number} mark 0, or the number of the mark
 * @property {{ name: string, dtype: string, shape: number[], data: Buffer }[]} tensors its inputs
 * @property {Buffer} cursor the caller's cursor; empty for none
 * @property {number} acked up to where the caller had the replies when it was submitted
 * @property {number} bytes of its inputs
 * @property {number} kept bytes of its outputs, as far as the signature tells
 * @property {number} frame the frame that carries it now; 0 for none
 * @property {boolean} answered
 * @property {(answer: { outputs: any, end: number }) => void} resolve
 * @property {(error: Error) => void} reject
 */

/** Chunks in their order. What is not known to be durable stays, also when it was answered. */
export class Log {
  /** @param {(bytes: number) => void} count hears by how many bytes of inputs it grows and shrinks */
  constructor(count) {
    this.count = count;
    /** @type {Chunk[]} */
    this.chunks = [];
    /** @type {Chunk[]} those that are to be sent, the next one first */
    this.queue = [];
    /** @type {{ position: number, end: number, kept: number }[]} those that were sent and not acknowledged */
    this.sent = [];
    /** Where the next chunk starts. */
    this.end = 0;
    /** Up to where all is answered. */
    this.answered = 0;
    /** How often chunks were dropped. */
    this.drops = 0;
  }

  /** Whether a caller waits for an answer. */
  get waits() {
    return this.answered < this.end;
  }

  /** The oldest position from which all can be sent again. */
  get start() {
    return this.chunks.length ? this.chunks[0].position : this.end;
  }

  /** @param {number} position where a session stands that is opened for the first time, or anew */
  begin(position) {
    this.end = this.answered = position;
  }

  /** @param {Chunk} chunk */
  add(chunk) {
    this.chunks.push(chunk);
    this.queue.push(chunk);
    this.end = chunk.end;
    this.count(chunk.bytes);
  }

  /** The first of the queue is sent. */
  leaves() {
    const { position, end, kept } = /** @type {Chunk} */ (this.queue.shift());
    if (!this.sent.some((other) => other.position === position)) this.sent.push({ position, end, kept });
  }

  /**
   * Sends again what the server does not have, and what it has and nobody was told of.
   * @param {number} position where the session stands there
   */
  resend(position) {
    this.queue = this.chunks.filter((chunk) => !chunk.answered || chunk.position >= position);
    for (const chunk of this.chunks) chunk.frame = 0;
  }

  /**
   * A chunk is answered: its caller hears it, if it has not before.
   * @param {Chunk} chunk
   * @param {any} outputs
   * @returns {boolean} whether a caller heard it
   */
  answer(chunk, outputs) {
    chunk.frame = 0;
    if (chunk.answered) return false;
    chunk.answered = true;
    this.answered = chunk.end;
    chunk.resolve({ outputs, end: chunk.end });
    return true;
  }

  /** @param {number} durable what is answered, and survives whatever the server promised, is forgotten */
  prune(durable) {
    let keep = this.chunks.findIndex((chunk) => !chunk.answered || chunk.frame || chunk.end > durable);
    if (keep < 0) keep = this.chunks.length;
    // What is to be sent again is at the end; nothing before it can be missing there.
    const queued = this.queue.length ? this.chunks.indexOf(this.queue[0]) : keep;
    for (const chunk of this.chunks.splice(0, Math.min(keep, queued))) this.count(-chunk.bytes);
  }

  /**
   * A chunk was refused, or given up: those behind it would start where nothing is, and go with it.
   * @param {Chunk} first
   * @param {StatestreamError} error
   */
  drop(first, error) {
    const gone = this.chunks.splice(this.chunks.indexOf(first));
    this.queue = this.queue.filter((chunk) => !gone.includes(chunk));
    this.sent = this.sent.filter(({ position }) => position < first.position);
    this.end = first.position;
    this.drops += 1;
    for (const chunk of gone) {
      this.count(-chunk.bytes);
      const behind = `the chunk at position ${first.position}, before this one, was refused: ${error.message}`;
      const { reason, metadata, retryAfter } = error;
      chunk.frame = 0;
      chunk.reject(chunk === first ? error : new StatestreamError(reason, behind, { metadata, retryAfter }));
    }
  }

  /** @param {StatestreamError} error the session is over */
  fail(error) {
    for (const chunk of this.chunks.splice(0)) {
      this.count(-chunk.bytes);
      chunk.frame = 0;
      if (!chunk.answered) chunk.reject(error);
    }
    this.queue = [];
  }
}
