// The protocol without I/O: which frames are due, and what answers mean. `Link` carries both.
import { randomBytes } from 'node:crypto';

import { BUSY, FATAL, fromStatus, REOPEN, StatestreamError, UNAVAILABLE } from './errors.js';
import { Parts } from './parts.js';
import { readSteps, readU32, readU64, stepBytes, u32, u64 } from './tensors.js';

/**
 * @typedef {import('./session.js').Session} Session
 * @typedef {import('./log.js').Chunk} Chunk
 * @typedef {{ kind: 'chunk', chunks: Map<Session, Chunk>, room: Room, cost: number }} ChunkFrame
 * @typedef {{ kind: 'open', sessions: Set<Session> }} OpenFrame
 * @typedef {{ kind: 'close' | 'flush', session: Session }} ControlFrame
 * @typedef {{ window: number, used: number }} Room bytes that a version of a model may have under way, and has
 */

const FRAME_BYTES = 1 << 20; // Frames of about 1 MB: larger ones hold others up.
const FRAME_OVERHEAD = 512; // What the protocol counts for a frame beside its tensors.
const MAX_CLAIMS = 8; // How often a first open bids higher than somebody else.
const MAX_FAULTS = 4; // After so many streams that ended by a fault, a session that was under way in all of them fails.

/** Every session of one client, over successive streams. */
export class Core {
  /** @param {{ retryTimeout: number, replayBytes: number }} settings in seconds and bytes */
  constructor(settings) {
    this.settings = settings;
    this.writer = randomBytes(16);
    this.incarnation = 0;
    /** @type {Map<number, Session>} by handle */
    this.sessions = new Map();
    /** @type {Map<number, ChunkFrame | OpenFrame | ControlFrame>} frames without a whole answer, by number */
    this.frames = new Map();
    /** @type {Map<string, Room>} */
    this.rooms = new Map();
    this.parts = new Parts();
    /** @type {Set<Session>} those that are to send an acknowledgement alone */
    this.acks = new Set();
    this.limits = /** @type {any} */ ({ max_chunk_steps: 256, max_message_bytes: 4 << 20, max_unacknowledged_chunks: 64 });
    this.ephemeral = false;
    this.online = false;
    /** The server is to be left once all is answered; nothing more is sent on this stream. */
    this.leaving = false;
    this.frame = 0;
    this.replayed = 0;
    this.heard = 0;
    /** Grows with every answer that a caller waited for. */
    this.progress = 0;
    /** Says that a frame may be due. */
    this.wake = () => {};
    /** @type {(() => void)[]} */
    this.roomWaiters = [];
  }

  // ── for sessions ──────────────────────────────────────────────────────────────────────────────

  get isFull() {
    return this.replayed > this.settings.replayBytes;
  }

  /** Waits until there may be room for inputs. @returns {Promise<void>} */
  async room() {
    if (this.isFull) await new Promise((resolve) => this.roomWaiters.push(() => resolve(undefined)));
  }

  /** @param {number} bytes by how many the inputs grow, or shrink, that are kept to be sent again */
  keeps(bytes) {
    this.replayed += bytes;
    if (!this.isFull) for (const resolve of this.roomWaiters.splice(0)) resolve();
  }

  /** @param {number} steps @param {Chunk['tensors']} tensors @param {Uint8Array} cursor */
  checkChunk(steps, tensors, cursor) {
    const bytes = tensors.reduce((sum, { data }) => sum + data.length, 0);
    const { max_chunk_steps, max_message_bytes } = this.limits;
    /** @param {string} message */
    const bad = (message) => new StatestreamError('BAD_TENSOR', message);
    if (steps > max_chunk_steps) throw bad(`a chunk of ${steps} steps; the server takes ${max_chunk_steps}: cut it`);
    if (bytes > max_message_bytes - 4096) {
      throw bad(`a chunk of ${bytes} bytes; the server takes messages of ${max_message_bytes}: fewer steps at a time`);
    }
    if (cursor.length > 256) throw new StatestreamError('BAD_FRAME', `a cursor of ${cursor.length} bytes; 256 at most`);
  }

  /** @param {Session} session a new one */
  add(session) {
    session.handle = 0;
    while (this.sessions.has(session.handle)) session.handle += 1;
    this.sessions.set(session.handle, session);
    this.wake();
  }

  /** @param {Session} session */
  acknowledge(session) {
    this.acks.add(session);
    this.wake();
  }

  /**
   * The session is over for this client.
   * @param {Session} session
   * @param {StatestreamError} error
   * @param {boolean} [free] whether the server does not know its handle any more
   */
  end(session, error, free = false) {
    if (session.error) return;
    session.state = 'over';
    session.error = error;
    session.log.fail(error);
    for (const { reject } of session.flushes.splice(0)) reject(error);
    session.closing?.reject(error);
    session.closing = undefined;
    session.openers[1](error);
    // A handle that the server may have bound is not given to another session on this stream.
    if (free || !this.online) this.sessions.delete(session.handle);
    for (const [number, entry] of this.frames) if (entry.kind === 'open') this.openedRow(number, entry, session);
    this.wake();
  }

  // ── the stream ────────────────────────────────────────────────────────────────────────────────

  /** A stream begins. @param {any} info what the server said of itself */
  connected(info) {
    this.limits = info.limits;
    this.ephemeral = info.durability === 'DURABILITY_MODE_NONE';
    this.online = true;
    this.leaving = false;
    this.heard = performance.now();
    // Every stream's claims are above those of the one before; a clock that went back changes nothing.
    this.incarnation = Math.max(this.incarnation + 1, Date.now() * 1000);
  }

  /** It is over: what was not answered is sent again on the next. @param {StatestreamError} [fault] of the server's */
  disconnected(fault) {
    if (fault) this.blame(fault);
    this.online = false;
    this.frames.clear();
    this.rooms.clear();
    this.parts.clear();
    for (const session of [...this.sessions.values()]) {
      if (session.state === 'over') this.sessions.delete(session.handle);
      if (session.state === 'opening') session.uncertain = true;
      if (session.state !== 'over') session.state = session.hasOpened ? 'lost' : 'new';
      for (const wait of [...session.flushes, ...(session.closing ? [session.closing] : [])]) wait.frame = 0;
    }
  }

  /** A session whose chunks were under way whenever a stream ended by a fault may be its cause. @param {StatestreamError} fault */
  blame(fault) {
    const suspects = new Set();
    for (const entry of this.frames.values()) {
      if (entry.kind === 'chunk') for (const session of entry.chunks.keys()) suspects.add(session);
    }
    for (const session of suspects) if ((session.faults += 1) > MAX_FAULTS) this.end(session, this.unknown(session, fault));
  }

  /** Ends the sessions whose callers waited too long; whether there was one. @param {StatestreamError} cause */
  giveUp(cause) {
    const before = performance.now() - this.settings.retryTimeout * 1000;
    const late = [...this.sessions.values()].filter((session) => session.isWaitedFor && session.since < before);
    for (const session of late) this.end(session, this.unknown(session, cause));
    return late.length > 0;
  }

  /** @param {Session} session @param {StatestreamError} cause */
  unknown(session, cause) {
    const from = session.log.answered;
    const open = `; steps of session '${session.id}' from position ${from} on may be applied or not: open it again`;
    const said = session.log.waits ? `${cause.message}${open}` : cause.message;
    return new StatestreamError(cause.reason, said, { metadata: cause.metadata });
  }

  // ── frames that are due ───────────────────────────────────────────────────────────────────────

  /** The next frame to write; undefined while there is none. @returns {any} */
  next() {
    if (!this.online || this.leaving) return undefined;
    const now = performance.now();
    const ready = [...this.sessions.values()].filter(({ heldUntil }) => heldUntil <= now);
    return this.openFrame(ready) ?? this.ackFrame() ?? this.chunkFrame(ready) ?? this.controlFrame(ready);
  }

  /** @param {any} request @param {ChunkFrame | OpenFrame | ControlFrame} [entry] what its answer is about */
  numbered(request, entry) {
    this.frame += 1;
    if (entry) this.frames.set(this.frame, entry);
    return { frame: this.frame, ...request };
  }

  /** @param {Session[]} ready */
  openFrame(ready) {
    const [first, ...others] = ready.filter(({ state }) => state === 'new' || state === 'lost');
    if (!first) return undefined;
    // A first open may be refused whole for what is wrong with it, so it shares its frame with nobody.
    const kind = (/** @type {Session} */ s) => `${s.model}/${s.version}/${s.mode}/${Boolean(s.closing)}`;
    const shares = (/** @type {Session} */ other) => other.hasOpened && !other.alone && kind(other) === kind(first);
    const all = first.hasOpened && !first.alone ? [first, ...others.filter(shares)].slice(0, 4096) : [first];
    for (const session of all) session.state = 'opening';
    const { closing, hasOpened, mode } = first;
    this.incarnation = Math.max(this.incarnation, ...all.map(({ outbids }) => outbids)) + 1;
    const open = {
      model: first.model,
      version: first.version,
      handles: u32(all.map(({ handle }) => handle)),
      ids: all.map(({ id }) => id),
      // To close it again must not make it anew.
      mode: `OPEN_MODE_${hasOpened ? (closing ? 'RESUME' : 'EITHER') : mode.toUpperCase()}`,
      writer: this.writer,
      incarnation: this.incarnation,
      seen_epochs: u64(all.map(({ epoch }) => epoch)),
      replay_positions: u64(all.map(({ log }) => (hasOpened ? log.start : 0))),
      acked_positions: u64(all.map(({ ackSent }) => ackSent)),
      return_replies: !hasOpened && first.wantsReplies,
    };
    return this.numbered({ open }, { kind: 'open', sessions: new Set(all) });
  }

  ackFrame() {
    const all = [...this.acks].filter(({ state, acked, ackSent }) => state === 'open' && acked > ackSent);
    this.acks.clear();
    if (!all.length) return undefined;
    for (const session of all) session.ackSent = session.acked;
    const handles = u32(all.map(({ handle }) => handle));
    return this.numbered({ ack: { handles, acked_positions: u64(all.map(({ acked }) => acked)) } });
  }

  /** The next chunk of every session of one model and version that has one, as columns. @param {Session[]} ready */
  chunkFrame(ready) {
    /** @type {Map<Session, Chunk>} */
    const chunks = new Map();
    let cost = FRAME_OVERHEAD;
    let room = /** @type {Room | undefined} */ (undefined);
    let key = '';
    for (const session of ready) {
      const chunk = session.log.queue[0];
      const own = `${session.model}/${session.version}`;
      if (!chunk || session.state !== 'open' || (key && own !== key)) continue;
      const open = /** @type {Room} */ (this.rooms.get(own));
      const more = chunk.bytes + chunk.kept;
      // One chunk alone may be larger than the window, where nothing else is under way.
      if ((open.used || chunks.size) && open.used + cost + more > open.window) continue;
      if (chunks.size && cost + more > FRAME_BYTES) continue;
      if (!this.hasWindow(session, chunk)) continue;
      [key, room, cost] = [own, open, cost + more];
      chunks.set(session, chunk);
    }
    if (!room) return undefined;
    room.used += cost;
    const sessions = [...chunks.keys()];
    const all = [...chunks.values()];
    const frame = this.numbered({}, { kind: 'chunk', chunks, room, cost });
    for (const [session, chunk] of chunks) {
      session.log.leaves();
      session.ackSent = Math.max(session.ackSent, chunk.acked);
      chunk.frame = this.frame;
    }
    const inputs = sessions[0].signature.inputs.map(({ name }, at) => {
      const parts = all.filter(({ mark }) => !mark).map(({ tensors }) => tensors[at]);
      if (!parts.length) return undefined;
      const steps = parts.reduce((sum, { shape }) => sum + shape[0], 0);
      const data = Buffer.concat(parts.map((part) => part.data));
      return { name, dtype: parts[0].dtype, shape: [steps, ...parts[0].shape.slice(1)], data };
    });
    frame.chunk = {
      handles: u32(sessions.map(({ handle }) => handle)),
      positions: u64(all.map(({ position }) => position)),
      acked_positions: u64(sessions.map(({ ackSent }) => ackSent)),
      lengths: u32(all.map(({ steps }) => steps)),
      inputs: inputs.filter(Boolean),
      marks: Buffer.from(all.map(({ mark }) => mark)),
      cursors: all.some(({ cursor }) => cursor.length) ? all.map(({ cursor }) => cursor) : [],
    };
    if (!frame.chunk.inputs.length) frame.chunk.lengths = Buffer.alloc(0); // Marks alone.
    return frame;
  }

  /**
   * Whether the server keeps the reply of one more chunk of this session.
   * @param {Session} session
   * @param {Chunk} chunk
   */
  hasWindow(session, chunk) {
    const { log } = session;
    const acked = Math.max(session.ackSent, chunk.acked);
    log.sent = log.sent.filter(({ end }) => end > acked);
    const open = log.sent.filter(({ position }) => position < chunk.position);
    const kept = open.reduce((sum, other) => sum + other.kept, chunk.kept);
    const beyond = open.length >= this.limits.max_unacknowledged_chunks;
    if (!beyond && (!open.length || kept <= session.keptWindow)) return true;
    // What its caller has is acknowledged now, not with the chunk that it submits next.
    if (session.acked > acked) this.acknowledge(session);
    return false;
  }

  /** @param {Session[]} ready */
  controlFrame(ready) {
    for (const session of ready.filter(({ state }) => state === 'open')) {
      const handles = u32([session.handle]);
      const flush = session.flushes.find(({ frame }) => !frame);
      if (flush) {
        flush.frame = this.frame + 1;
        return this.numbered({ flush: { handles, positions: u64([flush.position]) } }, { kind: 'flush', session });
      }
      const { closing, log, epoch } = session;
      if (!closing || closing.frame || log.waits || log.queue.length) continue;
      if (!closing.remove && session.ackSent < log.answered) {
        session.acked = log.answered; // Who closes it has all that came.
        this.acks.add(session);
        return this.ackFrame();
      }
      const action = `CLOSE_ACTION_${closing.remove ? 'DELETE' : 'DETACH'}`;
      const close = { handles, action, positions: u64([log.end]), epochs: u64([epoch]) };
      closing.frame = this.frame + 1;
      return this.numbered({ close }, { kind: 'close', session });
    }
    return undefined;
  }

  // ── answers ───────────────────────────────────────────────────────────────────────────────────

  /** @param {any} response a `StreamResponse` */
  receive(response) {
    this.heard = performance.now();
    const { frame } = response;
    const body = response[response.response];
    const entry = this.frames.get(frame);
    /** @type {Record<string, () => unknown>} */
    const kinds = {
      opened: () => entry?.kind === 'open' && this.opened(frame, entry, body),
      result: () => this.result(frame, entry, body),
      part: () => this.result(frame, entry, this.parts.take(frame, body)),
      closed: () => entry?.kind === 'close' && this.closed(frame, entry.session, body.errors),
      durable: () => this.durable(frame, entry, body),
      refused: () => this.refused(frame, entry, fromStatus(body.status)),
      notice: () => {
        for (const { handle, status } of body.errors) this.left(this.sessions.get(handle), fromStatus(status));
      },
      go_away: () => (this.leaving = true),
      move: () => this.move(readU32(body.handles).length),
    };
    kinds[response.response]?.(); // What this client does not know is of a later release; it changes nothing here.
    this.wake();
  }

  /** @param {Session} session a caller of it was answered */
  answered(session) {
    session.since = performance.now();
    session.tries = session.faults = 0;
    this.progress += 1;
  }

  /** A session of an open frame is answered, or its caller left. @param {number} frame @param {OpenFrame} entry @param {Session} session */
  openedRow(frame, entry, session) {
    entry.sessions.delete(session);
    if (!entry.sessions.size) this.frames.delete(frame);
  }

  /** @param {number} frame @param {OpenFrame} entry @param {any} body an `OpenedFrame` */
  opened(frame, entry, body) {
    const [epochs, positions, durable] = [body.epochs, body.positions, body.durable_positions].map(readU64);
    const kept = readU32(body.kept);
    readU32(body.handles).forEach((handle, at) => {
      const session = this.sessions.get(handle);
      if (!session || !entry.sessions.has(session)) return;
      const key = `${session.model}/${body.version}`;
      const room = this.rooms.get(key) ?? { window: 0, used: 0 };
      room.window = body.window_bytes;
      this.rooms.set(key, room);
      Object.assign(session, { version: body.version, epoch: epochs[at], keptWindow: body.kept_window_bytes, state: 'open' });
      session.durablePosition = Math.max(session.hasOpened ? session.durablePosition : 0, durable[at]);
      session.uncertain = session.alone = false;
      if (session.hasOpened) {
        this.openedRow(frame, entry, session);
        this.reopened(session, positions[at]);
        return;
      }
      session.created = body.created[at] === 1;
      session.cursor = body.cursors[at] ?? session.cursor;
      session.log.begin(positions[at]);
      session.kept = kept[at] ?? 0;
      session.replies = [];
      if (session.kept) session.state = 'opening';
      else this.ready(frame, entry, session);
    });
    for (const { handle, status } of body.errors) {
      const session = this.sessions.get(handle);
      if (!session || !entry.sessions.has(session)) continue;
      this.openedRow(frame, entry, session);
      this.notOpened(session, fromStatus(status));
    }
  }

  /** The first open is done, with the replies that were kept. @param {number} frame @param {OpenFrame} entry @param {Session} session */
  ready(frame, entry, session) {
    session.state = 'open';
    session.hasOpened = true;
    session.replies.sort((a, b) => a.position - b.position);
    session.acked = session.ackSent = session.replies[0]?.position ?? session.log.answered;
    this.openedRow(frame, entry, session);
    this.answered(session);
    session.openers[0](session);
  }

  /** @param {Session} session @param {number} position where it stands on the new stream */
  reopened(session, position) {
    const { log } = session;
    if (position < log.start || position > log.end) {
      const reason = position < log.start ? 'STATE_LOST' : 'SESSION_MOVED';
      const message = `session '${session.id}' stands at ${position}; this client has steps ${log.start} to ${log.end}`;
      this.end(session, new StatestreamError(reason, message, { metadata: { position: `${position}` } }));
      return;
    }
    log.resend(position);
    this.settle(session);
  }

  /** @param {Session} session @param {StatestreamError} error */
  notOpened(session, error) {
    const { closing } = session;
    session.state = session.hasOpened ? 'lost' : 'new';
    if (error.reason === 'DRAINING') this.leaving = true;
    const gone = error.reason === 'SESSION_NOT_FOUND' || (error.reason === 'SESSION_MOVED' && !closing?.remove);
    if (closing && gone && (closing.remove || session.durablePosition >= session.log.end)) {
      this.let(session); // Its close was done; only the answer was lost.
    } else if (UNAVAILABLE.has(error.reason) || (session.hasOpened && BUSY.has(error.reason))) {
      session.uncertain = true;
      this.hold(session, error);
    } else if (!session.hasOpened && error.reason === 'SESSION_MOVED' && session.tries < MAX_CLAIMS) {
      // Somebody claimed it since this client connected; its caller asks for it now, so it may have it.
      session.outbids = Number(error.metadata.incarnation ?? 0);
      this.hold(session, error);
    } else if (error.reason === 'SESSION_EXISTS' && session.uncertain && error.metadata.untouched) {
      session.mode = 'either'; // This client made it, and did not hear so.
    } else {
      this.end(session, error, true);
    }
  }

  /** Nothing about it leaves for a while. @param {Session} session @param {StatestreamError} error */
  hold(session, error) {
    const seconds = error.reason === 'DRAINING' ? 0 : (error.retryAfter ?? Math.min(2, 0.05 * 2 ** session.tries));
    session.tries += 1;
    session.heldUntil = performance.now() + seconds * 1000;
    setTimeout(() => this.wake(), seconds * 1000 + 1).unref();
  }

  /** @param {number} frame @param {ChunkFrame | OpenFrame | ControlFrame | undefined} entry @param {any} body a `ResultFrame` */
  result(frame, entry, body) {
    const handles = readU32(body.handles);
    const [positions, durable] = [body.positions, body.durable_positions].map(readU64);
    const lengths = body.lengths.length ? readU32(body.lengths) : handles.map(() => body.steps);
    let start = 0;
    handles.forEach((handle, at) => {
      const outputs = readSteps(body.outputs, start, lengths[at]);
      start += lengths[at];
      const session = this.sessions.get(handle);
      if (!session) return;
      session.durablePosition = Math.max(session.durablePosition, durable[at]);
      if (entry?.kind === 'open') {
        if (lengths[at]) session.replies.push({ position: positions[at], outputs });
        this.keptReply(frame, entry, session);
        return;
      }
      const chunk = entry?.kind === 'chunk' && entry.chunks.get(session);
      if (!chunk || chunk.position !== positions[at]) return;
      const isCurrent = chunk.frame === frame;
      this.done(frame, entry, session);
      if (!isCurrent) return;
      if (session.log.answer(chunk, outputs)) {
        if (chunk.cursor.length) session.cursor = chunk.cursor;
        this.answered(session);
      }
      this.settle(session);
    });
    for (const { handle, position, status } of body.errors) {
      const session = this.sessions.get(handle);
      const error = fromStatus(status);
      if (session && entry?.kind === 'open') this.keptReply(frame, entry, session, error);
      else if (session && entry?.kind === 'chunk') this.refusedChunk(frame, entry, session, position, error);
    }
  }

  /** A kept reply came, or why it does not. @param {number} frame @param {OpenFrame} entry @param {Session} session @param {StatestreamError} [error] */
  keptReply(frame, entry, session, error) {
    if (!entry.sessions.has(session)) return;
    if (error && error.reason !== 'ALREADY_APPLIED') {
      this.openedRow(frame, entry, session);
      this.notOpened(session, error);
    } else if ((session.kept -= 1) === 0) {
      this.ready(frame, entry, session);
    }
  }

  /** A chunk of a frame is answered, whichever way. @param {number} frame @param {ChunkFrame} entry @param {Session} session */
  done(frame, entry, session) {
    entry.chunks.delete(session);
    if (entry.chunks.size) return;
    this.frames.delete(frame);
    entry.room.used -= entry.cost;
  }

  /** @param {number} frame @param {ChunkFrame} entry @param {Session} session @param {number} position @param {StatestreamError} error */
  refusedChunk(frame, entry, session, position, error) {
    const chunk = entry.chunks.get(session);
    if (!chunk || chunk.position !== position) return;
    const isCurrent = chunk.frame === frame;
    this.done(frame, entry, session);
    // What was sent behind a refused chunk is refused too; it is queued again, or dropped, by then.
    if (!isCurrent || session.state === 'over') return;
    const { reason } = error;
    if (reason === 'ALREADY_APPLIED' && chunk.answered) {
      chunk.frame = 0;
      this.settle(session);
    } else if (reason === 'ALREADY_APPLIED' || FATAL.has(reason) || chunk.answered) {
      const moved = reason === 'ALREADY_APPLIED' || reason === 'POSITION_CONFLICT';
      const message = `another writer stepped session '${session.id}': ${error.message}`;
      this.end(session, moved ? new StatestreamError('SESSION_MOVED', message, error) : error);
    } else if (REOPEN.has(reason) || UNAVAILABLE.has(reason) || BUSY.has(reason)) {
      if (REOPEN.has(reason)) session.state = 'lost';
      if (reason === 'DRAINING') this.leaving = true;
      if (reason === 'WINDOW_FULL') this.acknowledge(session);
      this.hold(session, error);
      session.log.resend(chunk.position);
    } else {
      session.log.drop(chunk, error);
      this.answered(session);
    }
  }

  /** A frame was refused as a whole. @param {number} frame @param {ChunkFrame | OpenFrame | ControlFrame | undefined} entry @param {StatestreamError} error */
  refused(frame, entry, error) {
    if (entry?.kind === 'chunk') {
      for (const [session, { position }] of entry.chunks) this.refusedChunk(frame, entry, session, position, error);
    } else if (entry?.kind === 'open') {
      const shared = entry.sessions.size > 1 && !UNAVAILABLE.has(error.reason);
      for (const session of [...entry.sessions]) {
        this.openedRow(frame, entry, session);
        if (shared) Object.assign(session, { alone: true, state: 'lost' }); // One of them is at fault, or none.
        else this.notOpened(session, error);
      }
    } else if (entry) {
      this.frames.delete(frame);
      this.refusedControl(entry, frame, error);
    }
  }

  /** @param {number} frame @param {ChunkFrame | OpenFrame | ControlFrame | undefined} entry @param {any} body a `DurableFrame` */
  durable(frame, entry, body) {
    const positions = readU64(body.durable_positions);
    readU32(body.handles).forEach((handle, at) => {
      const session = this.sessions.get(handle);
      if (!session || session.state === 'over') return;
      session.durablePosition = Math.max(session.durablePosition, positions[at]);
      this.settle(session);
    });
    if (entry?.kind !== 'flush') return;
    this.frames.delete(frame);
    for (const { status } of body.errors) this.refusedControl(entry, frame, fromStatus(status));
    // Where nothing is durable, an answer is all that there is.
    const done = entry.session.flushes.filter((flush) => flush.frame === frame && !body.errors.length);
    for (const flush of done) this.flushed(entry.session, flush);
  }

  /** @param {Session} session @param {Session['flushes'][number]} flush */
  flushed(session, flush) {
    session.flushes.splice(session.flushes.indexOf(flush), 1);
    this.answered(session);
    flush.resolve();
  }

  /** Forgets what need not be sent again, and tells who waited for that. @param {Session} session */
  settle(session) {
    const { log } = session;
    log.prune(this.ephemeral ? log.answered : session.durablePosition);
    const done = session.flushes.filter(({ position }) => position <= session.durablePosition);
    for (const flush of done) this.flushed(session, flush);
    this.wake();
  }

  /** A flush or a close was refused. @param {ControlFrame} entry @param {number} frame @param {StatestreamError} error */
  refusedControl({ kind, session }, frame, error) {
    const wait = kind === 'close' ? session.closing : session.flushes.find((flush) => flush.frame === frame);
    if (!wait) return;
    const again = error.reason === 'POSITION_GAP' || UNAVAILABLE.has(error.reason) || BUSY.has(error.reason);
    if (again) {
      wait.frame = 0;
      this.hold(session, error);
    } else if (kind === 'close') {
      this.end(session, error, true);
    } else {
      session.flushes = session.flushes.filter((flush) => flush !== wait);
      wait.reject(error);
    }
  }

  /** @param {number} frame @param {Session} session @param {any[]} rowErrors */
  closed(frame, session, rowErrors) {
    this.frames.delete(frame);
    if (rowErrors.length) this.refusedControl({ kind: 'close', session }, frame, fromStatus(rowErrors[0].status));
    else this.let(session);
  }

  /** A session is closed. @param {Session} session */
  let(session) {
    const { closing } = session;
    session.closing = undefined;
    this.progress += 1;
    this.end(session, new StatestreamError('CLOSED', `session '${session.id}' is closed`), true);
    closing?.resolve();
  }

  /** The server let a session go. @param {Session | undefined} session @param {StatestreamError} error */
  left(session, error) {
    if (!session || session.state === 'over') return;
    for (const [number, entry] of this.frames) {
      if (entry.kind === 'chunk' && entry.chunks.has(session)) this.done(number, entry, session);
      else if (entry.kind === 'open' && entry.sessions.has(session)) {
        if (!session.kept) return; // That open is what took it, and is answered.
        this.openedRow(number, entry, session); // Its kept replies do not come any more.
      }
      else if ('session' in entry && entry.session === session) this.frames.delete(number);
    }
    session.kept = 0;
    for (const wait of [...session.flushes, ...(session.closing ? [session.closing] : [])]) wait.frame = 0;
    // Another claim, or a deletion: to open it as it was tells which, and takes nothing that is somebody else's.
    if (error.reason === 'SESSION_NOT_FOUND' && !session.closing) this.end(session, error, true);
    else session.state = session.hasOpened ? 'lost' : 'new';
  }

  /** The server asks that sessions go elsewhere: all do, where it names half of them. @param {number} named */
  move(named) {
    const open = [...this.sessions.values()].filter(({ state }) => state === 'open');
    if (named * 2 < open.length) return;
    const leave = () => ((this.leaving = true), this.wake());
    Promise.all(open.map((session) => session.flush())).then(leave, () => {}); // It stays where that fails.
  }
}
