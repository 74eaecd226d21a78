// Arrays: columns of numbers and tensors, as bytes and back; little-endian, as the protocol has them.
import os from 'node:os';

import { StatestreamError } from './errors.js';

if (os.endianness() !== 'LE') throw new Error('typed arrays of this machine are big-endian; the wire is not');

/**
 * @typedef {Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array | BigUint64Array
 *   | BigInt64Array | Float32Array | Float64Array} TypedArray
 * @typedef {{ dtype: string, shape: number[], data: TypedArray }} Tensor an array; of float16 the data are its bits
 * @typedef {number | bigint | boolean | TypedArray | NestedNumbers | { shape: number[], data: TypedArray }} Value
 * @typedef {(number | bigint | boolean | NestedNumbers)[]} NestedNumbers
 * @typedef {{ name: string, dtype: string, step: number[] }} Spec an input or output: the shape of one step; -1 is free
 */

/** @type {Record<string, any>} */
const ARRAYS = {
  ...{ bool: Uint8Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array },
  ...{ uint32: Uint32Array, int32: Int32Array, uint64: BigUint64Array, int64: BigInt64Array },
  ...{ float16: Uint16Array, float32: Float32Array, float64: Float64Array },
};

/** @param {number[]} numbers */
export const u32 = (numbers) => bytesOf(Uint32Array.from(numbers));
/** @param {number[]} numbers */
export const u64 = (numbers) => bytesOf(BigUint64Array.from(numbers, BigInt));
/** @param {Buffer} bytes @returns {number[]} */
export const readU32 = (bytes) => [...view(Uint32Array, bytes)];
/** @param {Buffer} bytes @returns {number[]} */
export const readU64 = (bytes) => [...view(BigUint64Array, bytes)].map(Number);

/** @param {TypedArray} array */
const bytesOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);

/**
 * Bytes as an array of their own: those of a message lie anywhere in it, and must not keep all of it.
 * @param {any} type
 * @param {Uint8Array} bytes
 */
const view = (type, bytes) => new type(Uint8Array.from(bytes).buffer);

/** @param {number[]} shape */
export const sizeOf = (shape) => shape.reduce((product, axis) => product * axis, 1);
/** @param {Spec} spec the bytes of one of its steps, 0 where an axis is free */
export const stepBytes = (spec) => Math.max(0, sizeOf(spec.step)) * ARRAYS[spec.dtype].BYTES_PER_ELEMENT;

/**
 * What a signature says of an input or output.
 * @param {any} spec a `TensorSpec`
 * @returns {Spec}
 */
export function readSpec({ name, dtype, shape, _batch_axis, batch_axis, _time_axis, time_axis }) {
  const left = [_batch_axis && batch_axis, _time_axis && time_axis];
  return { name, dtype, step: shape.filter((/** @type {number} */ _, /** @type {number} */ axis) => !left.includes(axis)) };
}

/**
 * The inputs of a chunk, checked against the signature, as a copy that nobody changes.
 * @param {Spec[]} specs
 * @param {Value | Record<string, Value>} values by name; or the value itself where there is one input
 * @param {boolean} single whether they are those of one step, without an axis for steps
 * @returns {{ steps: number, tensors: { name: string, dtype: string, shape: number[], data: Buffer }[] }}
 */
export function toTensors(specs, values, single) {
  const plain = typeof values !== 'object' || values === null || Array.isArray(values) || ArrayBuffer.isView(values) || 'data' in values;
  if (plain && specs.length !== 1) {
    throw bad(specs[0].name, `the model has inputs ${specs.map(({ name }) => name).join(', ')}; pass an object of them`);
  }
  const named = /** @type {Record<string, Value>} */ (plain ? { [specs[0].name]: values } : values);
  for (const name of Object.keys(named)) {
    if (!specs.some((spec) => spec.name === name)) throw bad(name, `the model has no input '${name}'`);
  }
  const tensors = specs.map((spec) => toTensor(spec, named[spec.name], single));
  const steps = tensors[0].shape[0];
  const other = tensors.find(({ shape }) => shape[0] !== steps);
  if (other) throw bad(other.name, `'${other.name}' has ${other.shape[0]} steps, '${tensors[0].name}' ${steps}`);
  if (!steps) throw bad(tensors[0].name, 'there are no steps; a chunk has one or more');
  return { steps, tensors };
}

/** @param {Spec} spec @param {Value | undefined} value @param {boolean} single */
function toTensor({ name, dtype, step }, value, single) {
  if (value === undefined || value === null) throw bad(name, `the input '${name}' is missing`);
  const shaped = typeof value === 'object' && 'data' in value ? value : undefined;
  const data = shaped ? toArray(name, dtype, shaped.data) : toArray(name, dtype, value);
  const size = sizeOf(step);
  const length = single ? 1 : data.length / size;
  const shape = shaped ? (single ? [1, ...shaped.shape] : shaped.shape) : [length, ...step];
  const fits = shape.length === step.length + 1 && step.every((axis, at) => axis < 0 || axis === shape[at + 1]);
  if (!fits || sizeOf(shape) !== data.length || !Number.isSafeInteger(shape[0])) {
    const free = size < 0 ? '; an axis is free (-1), so pass { shape, data }' : '';
    const came = shaped ? `shape [${shaped.shape}] and ${data.length} values` : `${data.length} values`;
    throw bad(name, `'${name}' has ${came}; expected steps of shape [${step}]${single ? ', one of them' : ''}${free}`);
  }
  return { name, dtype, shape, data: Buffer.from(bytesOf(data)) };
}

/** @param {string} name @param {string} dtype @param {any} value @returns {TypedArray} */
function toArray(name, dtype, value) {
  const type = ARRAYS[dtype];
  if (ArrayBuffer.isView(value)) {
    if (value instanceof type) return /** @type {any} */ (value);
    throw bad(name, `'${name}' is a ${value.constructor.name}; expected a ${type.name} (${dtype}), or plain numbers`);
  }
  const big = type === BigInt64Array || type === BigUint64Array;
  const flat = [value].flat(Infinity);
  const wrong = flat.find((item) => !['number', 'bigint', 'boolean'].includes(typeof item));
  if (wrong !== undefined || flat.includes(undefined)) throw bad(name, `'${name}' has ${String(wrong)}; expected numbers`);
  if (dtype === 'float16') throw bad(name, `'${name}' is float16; pass its bits as a Uint16Array`);
  const whole = !dtype.startsWith('float') && flat.find((item) => typeof item === 'number' && !Number.isInteger(item));
  if (whole !== false && whole !== undefined) throw bad(name, `'${name}' has ${whole}; ${dtype} holds whole numbers`);
  return type.from(flat, big ? BigInt : Number);
}

/**
 * One chunk's outputs from those of a frame.
 * @param {any[]} tensors of the whole frame
 * @param {number} start the first step
 * @param {number} steps how many
 * @returns {Record<string, Tensor>}
 */
export function readSteps(tensors, start, steps) {
  return Object.fromEntries(
    tensors.map(({ name, dtype, shape, data }) => {
      const step = data.length / (shape[0] || 1);
      const own = view(ARRAYS[dtype], data.subarray(start * step, (start + steps) * step));
      return [name, { dtype, shape: [steps, ...shape.slice(1)], data: own }];
    }),
  );
}

/** @param {string} field @param {string} message */
const bad = (field, message) => new StatestreamError('BAD_TENSOR', message, { metadata: { field } });
