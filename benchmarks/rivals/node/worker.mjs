// The worker of a rival whose client is in JavaScript: the loop around it, and what is measured of it.
//
// A module of a rival exports open(dsn), which makes an empty queue and gives an object with close() and either
//   client(): {send(texts), receive(): a message, which has a text, or nothing, acknowledge(message), close()}, or
//   producers(clients): {sends: [send(texts)], close()}, consumers(clients, handler): {close()} and unacknowledged(),
// as its library lets a client ask for a message or calls a handler. A handler that is called in a cycle waits for a
// client that asks, gives it the message and returns; the clock stops when the server has the last acknowledgement.
import { randomBytes } from "node:crypto";
import { createInterface } from "node:readline";

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const seen = new Set();
let queue, filling;
let numbers = 0;

function message() {
  return String(numbers++).padStart(12, "0") + filling;
}

function check(text) {
  const number = Number(text.slice(0, 12));
  if (seen.has(number)) throw new Error(`message ${number} came twice`);
  if (text.slice(12) !== filling) throw new Error(`message ${number} came changed`);
  seen.add(number);
}

function answer(messages, start, latencies) {
  const seconds = (performance.now() - start) / 1000;
  if (!latencies.length) return { messages, seconds };
  latencies.sort((one, other) => one - other);
  const at = (share) => latencies[Math.min(latencies.length - 1, Math.floor(share * latencies.length))];
  return { messages, seconds, latency_ms: { p50: at(0.5), p99: at(0.99) } };
}

async function timed(latencies, work) {
  const start = performance.now();
  const result = await work();
  latencies.push(performance.now() - start);
  return result;
}

async function settle(left) {
  const limit = performance.now() + 60_000;
  for (let kept; (kept = await queue.unacknowledged()) > left; await sleep(5))
    if (performance.now() > limit) throw new Error(`${kept - left} messages were not acknowledged within a minute`);
}

async function take(client) {
  let message;
  do message = await client.receive();
  while (!message);
  check(message.text);
  await client.acknowledge(message);
}

// Clients that ask, each with a connection of its own.
const asking = {
  async with(clients, work) {
    const made = await Promise.all(Array.from({ length: clients }, () => queue.client()));
    try {
      return await work(made);
    } finally {
      await Promise.all(made.map((client) => client.close()));
    }
  },

  producers(clients, work) {
    return asking.with(clients, (made) => work(made.map((client) => (texts) => client.send(texts))));
  },

  consume(count, clients) {
    return asking.with(clients, async (made) => {
      const latencies = [];
      let left = count;
      const start = performance.now();
      await Promise.all(
        made.map(async (client) => {
          while (left-- > 0) await timed(latencies, () => take(client));
        }),
      );
      return answer(count, start, latencies);
    });
  },

  cycle(clients, seconds) {
    return asking.with(clients, async (made) => {
      const latencies = [];
      const start = performance.now();
      const end = start + seconds * 1000;
      await Promise.all(
        made.map(async (client) => {
          while (performance.now() < end)
            await timed(latencies, async () => {
              await client.send([message()]);
              await take(client);
            });
        }),
      );
      return answer(latencies.length, start, latencies);
    });
  },
};

// A library that calls a handler.
const called = {
  async producers(clients, work) {
    const { sends, close } = await queue.producers(clients);
    try {
      return await work(sends);
    } finally {
      await close();
    }
  },

  async consume(count, clients) {
    const before = await queue.unacknowledged();
    let handled = 0;
    let start, consumers;
    try {
      await new Promise((resolve, reject) => {
        queue
          .consumers(clients, async (text) => {
            start ??= performance.now();
            try {
              check(text);
            } catch (error) {
              reject(error);
            }
            if (++handled === count) resolve();
          })
          .then((made) => (consumers = made), reject);
      });
      await settle(before - count);
      return answer(handled, start, []);
    } finally {
      await consumers.close();
    }
  },

  async cycle(clients, seconds) {
    const before = await queue.unacknowledged();
    const latencies = [];
    const waiting = [];
    const offered = [];
    let closed = false;
    const handler = (text) =>
      new Promise((resolve) => {
        if (closed) return resolve();
        const take = waiting.shift();
        if (!take) return offered.push({ text, resolve });
        resolve();
        take(text);
      });
    const receive = () =>
      new Promise((resolve) => {
        const offer = offered.shift();
        if (!offer) return waiting.push(resolve);
        offer.resolve();
        resolve(offer.text);
      });
    return called.producers(clients, async (sends) => {
      const consumers = await queue.consumers(clients, handler);
      try {
        // A library that has yet to listen would notice the first message late.
        await sends[0]([message()]);
        check(await receive());
        const start = performance.now();
        const end = start + seconds * 1000;
        await Promise.all(
          sends.map(async (send) => {
            while (performance.now() < end)
              await timed(latencies, async () => {
                await send([message()]);
                check(await receive());
              });
          }),
        );
        await settle(before);
        return answer(latencies.length, start, latencies);
      } finally {
        // What the library has fetched ahead of a backlog has to go for it to stop.
        closed = true;
        offered.forEach(({ resolve }) => resolve());
        await consumers.close();
      }
    });
  },
};

const operations = {
  async setup({ dsn, payload }) {
    const { open } = await import(`./${process.argv[2]}.mjs`);
    queue = await open(dsn);
    // Text that does not compress.
    const size = Math.max(0, payload - (queue.envelope ?? 0) - 12);
    filling = randomBytes(size).toString("base64url").slice(0, size);
    return { ok: true };
  },

  send({ count, batch, clients }) {
    return (queue.client ? asking : called).producers(clients, async (sends) => {
      const latencies = [];
      let left = count;
      const start = performance.now();
      await Promise.all(
        sends.map(async (send) => {
          while (left > 0) {
            const texts = Array.from({ length: Math.min(batch, left) }, message);
            left -= texts.length;
            await timed(latencies, () => send(texts));
          }
        }),
      );
      return answer(count, start, latencies);
    });
  },

  consume({ count, clients }) {
    return (queue.client ? asking : called).consume(count, clients);
  },

  cycle({ clients, seconds }) {
    return (queue.client ? asking : called).cycle(clients, seconds);
  },

  async teardown() {
    await queue.close();
    return { ok: true };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let told;
  try {
    told = await operations[request.op](request);
  } catch (error) {
    told = { error: String(error.message || error).replace(/\s+/g, " ") };
  }
  process.stdout.write(JSON.stringify(told) + "\n");
}
process.exit();
