// An exactly-once client of Statestream.
export { Client, connect } from './client.js';
export { StatestreamError } from './errors.js';
export { Session } from './session.js';
