// A session as its caller sees it: steps, streams of steps, marks, flush, fork, close.
import { StatestreamError } from './errors.js';
import { Log } from './log.js';
import { stepBytes, toTensors } from './tensors.js';
import { pipeline } from './pipeline.js';

/**
 * @typedef {import('./tensors.js').Value} Value
 * @typedef {import('./tensors.js').Tensor} Tensor
 * @typedef {Record<string, Tensor>} Outputs by name
 * @typedef {import('./log.js').Chunk} Chunk
 * @typedef {'create' | 'resume' | 'either' | 'replace'} Mode what must be true of the session
 */

const MARK_RESET = 1;

/** One live stream's memory on the server. `Client.open` makes it; it outlives streams, servers and this program. */
export class Session {
  /**
   * @param {import('./client.js').Client} client
   * @param {{ model: string, version: number, id: string, mode: Mode, replies: boolean }} asked
   * @param {{ inputs: import('./tensors.js').Spec[], outputs: import('./tensors.js').Spec[] }} signature
   */
  constructor(client, asked, signature) {
    this.client = client;
    this.model = asked.model;
    /** The version of the model to which it is pinned. */
    this.version = asked.version;
    this.id = asked.id;
    /** Whether opening made it. */
    this.created = false;
    /** The steps that survive a crash of the server. */
    this.durablePosition = 0;
    /** The caller's cursor that came last with an answered chunk. */
    this.cursor = /** @type {Buffer} */ (Buffer.alloc(0));
    /** @type {{ position: number, outputs: Outputs }[]} replies that no caller acknowledged; with `replies` only */
    this.replies = [];

    // What follows is for the client's own modules.
    this.mode = asked.mode;
    this.wantsReplies = asked.replies;
    this.signature = signature;
    this.handle = -1;
    this.epoch = 0;
    /** What the next claim must exceed. */
    this.outbids = 0;
    /** @type {'new' | 'opening' | 'open' | 'lost' | 'over'} new and lost ones are to be opened */
    this.state = 'new';
    /** @type {((value?: any) => void)[]} what ends the wait for `opened`, well or not */
    this.openers = [];
    this.opened = new Promise((...both) => (this.openers = both));
    this.opened.catch(() => {}); // Whoever waits for it hears of it; nobody has to.
    this.hasOpened = false;
    this.log = new Log((bytes) => client.core.keeps(bytes));
    /** Up to where the caller has the replies, and up to where the server was told so. */
    this.acked = 0;
    this.ackSent = 0;
    /** Replies that still come, of those that were kept. */
    this.kept = 0;
    /** No frame about it leaves before, in milliseconds of `performance.now`. */
    this.heldUntil = 0;
    /** Bytes of replies that the server keeps of it. */
    this.keptWindow = 0;
    this.tries = 0;
    /** Streams that ended by a fault of the server while its chunks were under way. */
    this.faults = 0;
    /** Opened in a frame of its own, because one that it shared was refused. */
    this.alone = false;
    /** An open may have been done whose answer did not come. */
    this.uncertain = false;
    /** Since when its caller waits without an answer. */
    this.since = performance.now();
    /** @type {{ position: number, frame: number, resolve: () => void, reject: (error: Error) => void }[]} */
    this.flushes = [];
    /** @type {{ remove: boolean, frame: number, resolve: () => void, reject: (error: Error) => void } | undefined} */
    this.closing = undefined;
    /** @type {StatestreamError | undefined} why it is over */
    this.error = undefined;
    this.waiters = 0;
  }

  /** The steps and marks whose answers are here. */
  get position() {
    return this.log.answered;
  }

  /**
   * One step.
   * @param {Value | Record<string, Value>} inputs by name, or the value where there is one input
   * @param {{ cursor?: Uint8Array }} [options] `cursor`: where you are in what you read, at most 256 bytes
   * @returns {Promise<Outputs>} of the shape of one step; the step was applied once
   * @throws {StatestreamError} nothing was applied, or (SERVER_UNAVAILABLE, CLOSED) it is not known
   */
  async step(inputs, { cursor } = {}) {
    const { outputs } = await this.submit(toTensors(this.signature.inputs, inputs, true), { cursor });
    for (const tensor of Object.values(outputs)) tensor.shape.shift();
    return outputs;
  }

  /**
   * Several steps that are applied together or not at all.
   * @param {Value | Record<string, Value>} inputs of all steps, one after the other
   * @param {{ cursor?: Uint8Array }} [options]
   * @returns {Promise<Outputs>} of all steps: shape [steps, ...one step]
   */
  async chunk(inputs, { cursor } = {}) {
    return (await this.submit(toTensors(this.signature.inputs, inputs, false), { cursor })).outputs;
  }

  /**
   * Steps one after the other without a wait between them: inputs go in, outputs come out in their order.
   *
   * Outputs are acknowledged when the next one is asked for: what you did with one is done by then. At the first step
   * that fails it throws, and those behind it are not applied. Whoever leaves the loop leaves up to `ahead` steps
   * behind that may be applied or not; `close` and `open` with `replies` tell.
   * @param {Iterable<Value | Record<string, Value>> | AsyncIterable<Value | Record<string, Value>>} inputs
   * @param {{ ahead?: number }} [options] `ahead`: how many may be on their way, or wait for you
   * @returns {AsyncGenerator<Outputs, void, void>}
   */
  stream(inputs, { ahead = 64 } = {}) {
    return pipeline(this, inputs, Math.min(ahead, 128));
  }

  /** Back to the start values of the signature; the position goes on. @returns {Promise<void>} */
  async reset() {
    await this.submit({ steps: 0, tensors: [] }, { mark: MARK_RESET });
  }

  /** Waits until all steps that were submitted survive a crash. @returns {Promise<void>} */
  flush() {
    if (this.error) return Promise.reject(this.error);
    return new Promise((resolve, reject) => {
      this.waiting();
      this.flushes.push({ position: this.log.end, frame: 0, resolve, reject });
      this.client.core.settle(this);
    });
  }

  /** Tells the server that the caller has all replies, without another step. */
  acknowledge() {
    this.acked = this.log.answered;
    this.client.core.acknowledge(this);
  }

  /**
   * Copies it as it stands when all steps are answered.
   * @param {string} id of the copy
   * @returns {Promise<Session>} the copy, open
   */
  fork(id) {
    return this.client.fork(this, id);
  }

  /**
   * Lets it go once all is answered, and durable; or deletes it. Replies that came are acknowledged.
   * @param {{ remove?: boolean }} [options]
   * @returns {Promise<void>}
   */
  close({ remove = false } = {}) {
    if (this.error?.reason === 'CLOSED' && !remove) return Promise.resolve();
    if (this.error) return Promise.reject(this.error);
    if (this.closing) return Promise.reject(new StatestreamError('CLOSED', `session '${this.id}' is being closed`));
    return new Promise((resolve, reject) => {
      this.waiting();
      this.closing = { remove, frame: 0, resolve, reject };
      this.client.core.wake();
    });
  }

  /**
   * Submits a chunk; steps that are not awaited keep their order.
   * @param {{ steps: number, tensors: Chunk['tensors'] }} inputs
   * @param {{ cursor?: Uint8Array, mark?: number, drops?: number }} [options] `drops`: of a stream, which says itself
   *   what was taken; it ends where a chunk was dropped since it began
   * @returns {Promise<{ outputs: Outputs, end: number }>}
   */
  async submit({ steps, tensors }, { cursor = new Uint8Array(), mark = 0, drops } = {}) {
    const { core } = this.client;
    core.checkChunk(steps, tensors, cursor);
    if (drops === undefined) this.acked = Math.max(this.acked, this.log.answered);
    // Inputs are kept until they are durable. Where there are too many, the caller is held back.
    for (let first = true; !this.error && (core.isFull || (first && this.waiters)); first = false) {
      this.waiters += 1;
      await core.room();
      this.waiters -= 1;
    }
    if (this.error ?? this.closing) {
      throw this.error ?? new StatestreamError('CLOSED', `session '${this.id}' is being closed`);
    }
    if (drops !== undefined && drops !== this.log.drops) {
      throw new StatestreamError('CLOSED', 'a step before this one was refused, so this one was not applied');
    }
    return new Promise((resolve, reject) => {
      this.waiting();
      this.log.add({
        ...{ position: this.log.end, steps, end: this.log.end + (mark ? 1 : steps), mark, tensors },
        ...{ cursor: Buffer.from(cursor), acked: this.acked, answered: false, frame: 0, resolve, reject },
        bytes: tensors.reduce((sum, { data }) => sum + data.length, 0),
        kept: this.signature.outputs.reduce((sum, spec) => sum + steps * stepBytes(spec), 0),
      });
      core.wake();
    });
  }

  /** Somebody begins to wait. */
  waiting() {
    if (!this.isWaitedFor) this.since = performance.now();
  }

  /** Whether a caller waits for the server. */
  get isWaitedFor() {
    const opening = !this.hasOpened && this.state !== 'over';
    return opening || this.log.waits || this.flushes.length > 0 || this.closing !== undefined;
  }
}
