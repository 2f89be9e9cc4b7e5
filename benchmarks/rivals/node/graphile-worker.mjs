// graphile-worker with a pool of workers and the batching that its page on performance names.
import { Logger, makeWorkerUtils, run, runMigrations } from "graphile-worker";
import pg from "pg";

import { settings } from "./connection.mjs";

const logger = new Logger(() => (level, text) => {
  if (level === "error") console.error(text);
});

function connect(dsn, max) {
  return new pg.Pool({ ...settings(dsn), max }).on("error", console.error).on("connect", (client) => {
    client.on("error", console.error);
  });
}

export async function open(dsn) {
  const connection = new pg.Client(settings(dsn));
  await connection.connect();
  await connection.query("drop schema if exists graphile_worker cascade");
  const pool = connect(dsn, 1);
  await runMigrations({ pgPool: pool, logger });
  await pool.end();

  return {
    envelope: '{"m":""}'.length,
    async producers(clients) {
      const pools = Array.from({ length: clients }, () => connect(dsn, 1));
      const made = await Promise.all(pools.map((pgPool) => makeWorkerUtils({ pgPool, logger })));
      return {
        sends: made.map(
          (producer) => (texts) =>
            texts.length === 1
              ? producer.addJob("bench", { m: texts[0] })
              : producer.addJobs(texts.map((m) => ({ identifier: "bench", payload: { m } }))),
        ),
        async close() {
          await Promise.all(made.map((producer) => producer.release()));
          await Promise.all(pools.map((pool) => pool.end()));
        },
      };
    },
    async consumers(clients, handler) {
      const pool = connect(dsn, Math.max(10, clients + 2));
      const runner = await run({
        pgPool: pool,
        preset: {
          worker: { concurrentJobs: clients, localQueue: { size: clients + 1 }, logger },
        },
        noHandleSignals: true,
        taskList: { bench: ({ m }) => handler(m) },
      });
      return {
        async close() {
          await runner.stop();
          await pool.end();
        },
      };
    },
    async unacknowledged() {
      const { rows } = await connection.query("select count(*)::int as n from graphile_worker._private_jobs");
      return rows[0].n;
    },
    async close() {
      await connection.query("drop schema graphile_worker cascade");
      await connection.end();
    },
  };
}
