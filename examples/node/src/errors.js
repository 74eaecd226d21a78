// Errors: one class, told apart by a stable reason; docs/errors.md says what each reason means.
import grpc from '@grpc/grpc-js';

import { decode } from './protos.js';

/** An error of the server's, or of this client's: compare `reason`, never the message. */
export class StatestreamError extends Error {
  /**
   * @param {string} reason
   * @param {string} message
   * @param {{ metadata?: Record<string, string>, retryAfter?: number }} [more] facts, and seconds until another try
   */
  constructor(reason, message, { metadata = {}, retryAfter } = {}) {
    super(message);
    this.name = 'StatestreamError';
    this.reason = reason;
    this.metadata = metadata;
    this.retryAfter = retryAfter;
  }
}

/** The server, or the way to it, is away: another try may be answered. */
export const UNAVAILABLE = new Set(['SERVER_UNAVAILABLE', 'STORE_UNAVAILABLE', 'DRAINING']);
/** There is too much just now: the same is answered later. */
export const BUSY = new Set(['OVERLOADED', 'WINDOW_FULL']);
/** The handle does not stand for what this client thinks: to open the session again settles it. */
export const REOPEN = new Set(['NOT_OWNER', 'SESSION_NOT_FOUND', 'POSITION_GAP']);
/** The session cannot be used any more until its caller opens it anew. */
export const FATAL = new Set([
  ...['SESSION_MOVED', 'STATE_LOST', 'MODEL_CHANGED', 'MODEL_NOT_FOUND', 'UNAUTHENTICATED', 'POSITION_CONFLICT'],
]);

/**
 * Reads a `google.rpc.Status`, of a row, of a frame, or of a call.
 * @param {{ message: string, details: { type_url: string, value: Buffer }[] }} status
 * @returns {StatestreamError}
 */
export function fromStatus(status) {
  let reason = 'INTERNAL';
  let metadata = {};
  let retryAfter;
  for (const { type_url, value } of status.details) {
    if (type_url.endsWith('/google.rpc.ErrorInfo')) ({ reason, metadata } = decode('ErrorInfo', value));
    if (type_url.endsWith('/google.rpc.RetryInfo')) {
      const delay = decode('RetryInfo', value).retry_delay;
      retryAfter = delay ? Number(delay.seconds) + delay.nanos / 1e9 : 0;
    }
  }
  return new StatestreamError(reason, status.message, { metadata, retryAfter });
}

/**
 * Reads what a call or a stream ended with.
 * @param {any} error of grpc-js
 * @param {string} where the address that was asked
 * @returns {StatestreamError}
 */
export function fromCall(error, where) {
  if (error instanceof StatestreamError) return error;
  const [status] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (status) return fromStatus(decode('Status', status));
  const away = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED, grpc.status.CANCELLED];
  /** @type {Record<number, string>} */
  const reasons = { [grpc.status.UNAUTHENTICATED]: 'UNAUTHENTICATED', [grpc.status.UNIMPLEMENTED]: 'UNIMPLEMENTED' };
  const reason = away.includes(error.code) ? 'SERVER_UNAVAILABLE' : (reasons[error.code] ?? 'INTERNAL');
  return new StatestreamError(reason, `${where}: ${error.details || error.message}`);
}
