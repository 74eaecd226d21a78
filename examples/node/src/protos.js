// The contract: services and messages, loaded from the .proto files when the program starts.
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const here = path.dirname(fileURLToPath(import.meta.url));
const folder = process.env.STATESTREAM_PROTOS ?? path.resolve(here, '../../../protos');

const files = ['inference', 'session', 'model', 'server'].map((name) => `statestream/v1/${name}.proto`);
const definition = loader.loadSync([...files, 'google/rpc/error_details.proto'], {
  includeDirs: [folder],
  keepCase: true, // Names as docs/protocol.md has them.
  longs: Number, // The protocol keeps positions, epochs and incarnations below 2^52.
  enums: String,
  defaults: true,
  oneofs: true,
});
const loaded = /** @type {any} */ (grpc.loadPackageDefinition(definition));

/** The constructors of all stubs: `new services.InferenceService(address, credentials)`. */
export const services = loaded.statestream.v1;

/**
 * Reads a message of `google.rpc` from its bytes.
 * @param {'Status' | 'ErrorInfo' | 'RetryInfo'} name
 * @param {Buffer} bytes
 * @returns {any}
 */
export function decode(name, bytes) {
  return /** @type {any} */ (definition[`google.rpc.${name}`]).deserialize(bytes);
}
