// A client: what connects a program with its sessions.
import grpc from '@grpc/grpc-js';

import { Core } from './core.js';
import { StatestreamError } from './errors.js';
import { Link } from './link.js';
import { Session } from './session.js';
import { readSpec } from './tensors.js';

/**
 * @typedef {object} Settings
 * @property {string[]} addresses replicas that share a store
 * @property {number} connectTimeout seconds that `connect` waits for a server
 * @property {number} retryTimeout seconds that an operation outlasts a server that does not answer it
 * @property {number} keepalive seconds between pings; a server that leaves one unanswered is given up for another
 * @property {number} replayBytes how many bytes of inputs are kept for replay before steps wait
 * @property {string} routeKey what a proxy may route by: all calls and the stream carry it
 * @property {Record<string, string>} metadata what every call carries beside
 * @property {import('@grpc/grpc-js').ChannelCredentials} credentials for TLS
 */

/**
 * Connects to the first of some servers that answers.
 * @param {string} addresses "host:port", or several with commas between them
 * @param {Partial<Settings>} [options]
 * @returns {Promise<Client>}
 * @throws {StatestreamError} SERVER_UNAVAILABLE after `connectTimeout`, UNSUPPORTED, UNAUTHENTICATED
 */
export async function connect(addresses, options = {}) {
  const settings = {
    ...{ connectTimeout: 10, retryTimeout: 60, keepalive: 10, replayBytes: 64 << 20, metadata: {} },
    routeKey: Math.random().toString(36).slice(2),
    credentials: grpc.credentials.createInsecure(),
    ...options,
    addresses: addresses.split(',').map((address) => address.trim()),
  };
  const client = new Client(settings);
  try {
    await client.link.connected(settings.connectTimeout);
  } catch (error) {
    await client.close();
    throw error;
  }
  return client;
}

/** Sessions over one stream at a time. `connect` makes it. */
export class Client {
  /** @param {Settings} settings */
  constructor(settings) {
    this.core = new Core(settings);
    this.link = new Link(this.core, settings);
  }

  /** What the server said of itself: its version, limits, durability. */
  get info() {
    return this.link.info;
  }

  /**
   * Opens a session, or resumes it where its caller, this program or one before it, left off.
   * @param {string} model
   * @param {string} id 1 to 256 bytes
   * @param {{ mode?: import('./session.js').Mode, version?: number, replies?: boolean }} [options] `mode`: `create` it,
   *   `resume` one that exists, `either`, or `replace` what was there; `version`: 0 for the session's own, or for a new
   *   one the default; `replies`: bring those that nobody acknowledged
   * @returns {Promise<Session>}
   * @throws {StatestreamError} SESSION_EXISTS, SESSION_NOT_FOUND, MODEL_NOT_FOUND, …
   */
  async open(model, id, { mode = 'either', version = 0, replies = false } = {}) {
    if (!['create', 'resume', 'either', 'replace'].includes(mode)) throw new TypeError(`there is no mode '${mode}'`);
    const session = new Session(this, { model, version, id, mode, replies }, await this.signature(model, version));
    for (const other of this.core.sessions.values()) {
      // A second claim would end the first one, which would come back, and so on.
      if (other.model !== model || other.id !== id || other.error) continue;
      throw new StatestreamError('ALREADY_OPEN', `this client has session '${id}' open; close it first`);
    }
    if (this.link.isClosed) throw this.link.cause;
    this.core.add(session);
    await session.opened;
    if (session.version !== version) session.signature = await this.signature(model, session.version);
    return session;
  }

  /** @param {string} model @param {number} version */
  async signature(model, version) {
    const { model: found } = await this.link.ask('ModelService', 'GetModel', { name: model, version });
    if (!found.signature?.states.length) {
      throw new StatestreamError('UNSUPPORTED', `model '${model}' has no memory, so it has no sessions`);
    }
    return { inputs: found.signature.inputs.map(readSpec), outputs: found.signature.outputs.map(readSpec) };
  }

  /**
   * @param {Session} session
   * @param {string} id
   * @returns {Promise<Session>}
   */
  async fork(session, id) {
    for (let tries = 0; ; tries += 1) {
      await session.flush(); // So all is answered under the present epoch.
      const request = { model: session.model, session_id: session.id, fork_id: id, epoch: session.epoch };
      try {
        await this.link.ask('SessionService', 'ForkSession', request);
        break;
      } catch (error) {
        const { reason } = /** @type {StatestreamError} */ (error);
        // The session moved while it was asked; this client has it, so it is asked again under its new epoch.
        if (!['SESSION_MOVED', 'NOT_OWNER'].includes(reason) || tries === 3) throw error;
      }
    }
    return this.open(session.model, id, { mode: 'resume' });
  }

  /**
   * Ends the connection. Sessions stay on the server; whoever waits hears CLOSED.
   * @returns {Promise<void>}
   */
  close() {
    return this.link.close();
  }
}
