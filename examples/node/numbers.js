// Numbers in, outputs out, one a line: node numbers.js ADDRESS MODEL ID. `python -m tests.compliance.clients` judges by it.
import { createInterface } from 'node:readline';

import { connect } from './src/index.js';

const [address, model, id] = process.argv.slice(2);

async function* numbers() {
  for await (const line of createInterface({ input: process.stdin })) yield Number(line);
}

try {
  const client = await connect(address);
  const session = await client.open(model, id);
  for await (const { y } of session.stream(numbers())) console.log(y.data[0]);
  await session.close();
  await client.close();
} catch (error) {
  const { reason, message, stack } = /** @type {any} */ (error);
  console.error(reason ? `${reason}: ${message}` : stack);
  process.exit(1);
}
