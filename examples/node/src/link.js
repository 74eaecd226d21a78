// The connection: dials, agrees on a version, carries frames, and dials again, until it is closed.
import grpc from '@grpc/grpc-js';

import { fromCall, StatestreamError } from './errors.js';
import { services } from './protos.js';

const NEWEST = 1; // The versions of the protocol that this client speaks.
const OLDEST = 1;
const STABLE = 1000; // Milliseconds: a stream that lasted so long is opened again at once, at the same address.
const NEVER_OTHERWISE = new Set(['UNAUTHENTICATED', 'UNSUPPORTED']);

/** @param {number} ms */
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** One stream at a time, to one of some addresses. */
export class Link {
  /**
   * @param {import('./core.js').Core} core
   * @param {import('./client.js').Settings} settings
   */
  constructor(core, settings) {
    this.core = core;
    this.settings = settings;
    this.at = 0;
    this.failures = 0;
    this.isClosed = false;
    /** @type {any} what the server said of itself */
    this.info = {};
    /** @type {StatestreamError} why there is no stream, or was none */
    this.cause = new StatestreamError('SERVER_UNAVAILABLE', 'no server was asked yet');
    /** @type {Record<string, any> | undefined} the stubs to the server that answers now */
    this.stubs = undefined;
    /** @type {any} */
    this.call = undefined;
    /** @type {(() => void)[]} */
    this.waiters = [];
    this.isWritable = false;
    this.willPump = false;
    core.wake = () => this.pumpSoon();
    this.running = this.run();
    this.watch = setInterval(() => this.look(), Math.max(50, Math.min(5000, (settings.retryTimeout * 1000) / 8)));
  }

  get address() {
    return this.settings.addresses[this.at];
  }

  /** What every call carries. */
  metadata() {
    const metadata = new grpc.Metadata();
    metadata.set('x-session-id', this.settings.routeKey);
    metadata.set('x-statestream-protocol', String(this.info.protocol || OLDEST));
    for (const [name, value] of Object.entries(this.settings.metadata)) metadata.set(name, value);
    return metadata;
  }

  // ── for callers ───────────────────────────────────────────────────────────────────────────────

  /** Waits for a stream. @param {number} seconds @returns {Promise<void>} */
  async connected(seconds) {
    const until = performance.now() + seconds * 1000;
    while (!this.core.online) {
      const left = until - performance.now();
      if (this.isClosed || left <= 0) throw this.isClosed ? this.cause : this.unavailable(seconds);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.waiters.push(() => (clearTimeout(timer), resolve(undefined)));
      });
    }
  }

  /** @param {number} seconds */
  unavailable(seconds) {
    const where = this.settings.addresses.join(', ');
    return new StatestreamError('SERVER_UNAVAILABLE', `no answer from ${where} for ${seconds} s: ${this.cause.message}`);
  }

  /**
   * A call beside the stream, repeated while the server, or the way to it, is away: so it must be one that may be.
   * @param {string} service
   * @param {string} method
   * @param {any} request
   * @returns {Promise<any>}
   */
  async ask(service, method, request) {
    const { retryTimeout } = this.settings;
    const until = performance.now() + retryTimeout * 1000;
    for (let tries = 0; ; tries += 1) {
      await this.connected(retryTimeout);
      const { stubs, address } = this;
      try {
        return await this.unary(stubs?.[service], method, request, until - performance.now());
      } catch (error) {
        const found = fromCall(error, address);
        const again = ['SERVER_UNAVAILABLE', 'STORE_UNAVAILABLE', 'DRAINING', 'OVERLOADED'].includes(found.reason);
        const wait = (found.retryAfter ?? Math.min(2, 0.05 * 2 ** tries)) * 1000;
        if (!again || this.isClosed || performance.now() + wait > until) throw found;
        await pause(wait);
      }
    }
  }

  /** @param {any} stub @param {string} method @param {any} request @param {number} ms @returns {Promise<any>} */
  unary(stub, method, request, ms) {
    return new Promise((resolve, reject) => {
      const done = (/** @type {any} */ error, /** @type {any} */ answer) => (error ? reject(error) : resolve(answer));
      stub[method](request, this.metadata(), { deadline: Date.now() + ms }, done);
    });
  }

  /** Ends it. What was accepted is applied; sessions stay on the server. @returns {Promise<void>} */
  async close() {
    if (!this.isClosed) {
      this.isClosed = true;
      this.cause = new StatestreamError('CLOSED', 'the client was closed');
      this.call?.cancel();
    }
    await this.running;
  }

  // ── inside ────────────────────────────────────────────────────────────────────────────────────

  async run() {
    while (!this.isClosed) {
      try {
        await this.dial();
      } catch (error) {
        if (this.isClosed) break;
        this.cause = fromCall(error, this.address);
        this.isClosed = NEVER_OTHERWISE.has(this.cause.reason);
        await pause(this.backOff());
        continue;
      }
      const began = performance.now();
      const { progress } = this.core;
      const error = await this.stream();
      this.hangUp();
      if (this.isClosed) break;
      const answered = this.core.progress !== progress;
      const fault = error && !['SERVER_UNAVAILABLE', 'DRAINING', 'SLOW_READER'].includes(error.reason) ? error : undefined;
      if (error) this.cause = error;
      const wasLeft = this.core.leaving;
      this.core.disconnected(fault);
      if (answered) this.failures = 0;
      if (wasLeft && answered) this.move();
      else if (wasLeft || fault || performance.now() - began < STABLE) await pause(this.backOff());
    }
    clearInterval(this.watch);
    this.hangUp();
    this.core.disconnected();
    for (const session of [...this.core.sessions.values()]) this.core.end(session, this.cause);
    for (const resolve of this.waiters.splice(0)) resolve();
  }

  /** Asks a server who it is; every stream begins so, because it may be another one each time. */
  async dial() {
    const options = {
      'grpc.max_receive_message_length': -1, // The server cuts what is long, and says how long its answers may be.
      'grpc.max_send_message_length': -1,
      'grpc.keepalive_time_ms': this.settings.keepalive * 1000,
      'grpc.keepalive_timeout_ms': this.settings.keepalive * 1000,
      'grpc.use_local_subchannel_pool': 1, // Else a new connection would wait for the backoff of an old one.
    };
    const make = (/** @type {string} */ name) => new services[name](this.address, this.settings.credentials, options);
    const about = make('ServerService');
    const request = { protocol: NEWEST, oldest_protocol: OLDEST, client: 'statestream-node/0.1' };
    try {
      const info = await this.unary(about, 'GetServerInfo', request, Math.min(5, this.settings.connectTimeout) * 1000);
      const version = info.protocol || 1;
      if (version < OLDEST || version > NEWEST) {
        const message = `${this.address} speaks version ${version} of the protocol, this client ${OLDEST} to ${NEWEST}`;
        throw new StatestreamError('UNSUPPORTED', `${message}: upgrade the older of the two`);
      }
      if (info.draining) throw new StatestreamError('DRAINING', `${this.address} is leaving and takes no new sessions`);
      this.info = info;
    } catch (error) {
      about.close();
      throw error;
    }
    // The services of one server share its connection.
    const shared = { channelOverride: about.getChannel() };
    const others = ['InferenceService', 'SessionService', 'ModelService'];
    const stubs = others.map((name) => [name, new services[name](this.address, this.settings.credentials, shared)]);
    this.stubs = { ServerService: about, ...Object.fromEntries(stubs) };
  }

  /** Carries frames until the stream is over. @returns {Promise<StatestreamError | undefined>} why, unless it was left */
  stream() {
    const { address } = this;
    return new Promise((resolve) => {
      const call = (this.call = this.stubs?.InferenceService.Stream(this.metadata()));
      call.on('data', (/** @type {any} */ response) => {
        if (call !== this.call) return;
        try {
          this.core.receive(response);
        } catch (error) {
          resolve(new StatestreamError('INTERNAL', `an answer of ${address} cannot be read: ${error}`));
          call.cancel();
        }
      });
      call.on('drain', () => {
        this.isWritable = true;
        this.pumpSoon();
      });
      call.on('error', (/** @type {any} */ error) => resolve(fromCall(error, address)));
      call.on('end', () => resolve(new StatestreamError('SERVER_UNAVAILABLE', `${address} ended the stream`)));
      this.isWritable = true;
      this.core.connected(this.info);
      for (const waiter of this.waiters.splice(0)) waiter();
      this.left = () => resolve(undefined);
      this.pumpSoon();
    });
  }

  left() {}

  /** Steps that are submitted at one moment share frames, so frames are made a moment later. */
  pumpSoon() {
    if (this.willPump) return;
    this.willPump = true;
    setImmediate(() => this.pump());
  }

  pump() {
    this.willPump = false;
    while (this.call && this.isWritable) {
      const frame = this.core.next();
      if (!frame) break;
      this.isWritable = this.call.write(frame);
    }
    if (this.call && this.core.leaving && !this.core.frames.size) this.left();
  }

  hangUp() {
    const { call, stubs } = this;
    this.call = this.stubs = undefined;
    call?.on('error', () => {});
    call?.cancel();
    for (const stub of Object.values(stubs ?? {})) stub.close();
  }

  /** Another address, at random: all clients of a server that fails must not meet at its neighbour. */
  move() {
    const { length } = this.settings.addresses;
    if (length > 1) this.at = (this.at + 1 + Math.floor(Math.random() * (length - 1))) % length;
  }

  /** Moves on; milliseconds until the next try. The first round over all addresses has no wait. */
  backOff() {
    this.move();
    this.failures += 1;
    const rounds = Math.floor(this.failures / this.settings.addresses.length);
    return rounds ? Math.random() * Math.min(1000, 50 * 2 ** Math.min(rounds - 1, 10)) : 0;
  }

  /** Tells callers who waited too long, and ends a stream on which nothing comes while they wait. */
  look() {
    const { core, settings } = this;
    const silent = performance.now() - core.heard > settings.retryTimeout * 1000;
    const cause = core.online
      ? new StatestreamError('SERVER_UNAVAILABLE', `${this.address} did not answer for ${settings.retryTimeout} s`)
      : this.unavailable(settings.retryTimeout);
    if (core.giveUp(cause) && core.online && silent) this.call?.cancel();
  }
}
