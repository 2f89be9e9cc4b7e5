// pg-boss with fetch and complete, what it has for those who do not want its polling workers.
import pg from "pg";
import { PgBoss } from "pg-boss";

import { settings } from "./connection.mjs";

const NAME = "bench";

function make(dsn, options) {
  return new PgBoss({ ...settings(dsn), ...options }).on("error", console.error);
}

export async function open(dsn) {
  const connection = new pg.Client(settings(dsn));
  await connection.connect();
  await connection.query("drop schema if exists pgboss cascade");
  // This one does the maintenance, as one instance of a cluster would.
  const keeper = make(dsn, {});
  await keeper.start();
  await keeper.createQueue(NAME);

  return {
    envelope: '{"m":""}'.length,
    // An instance of one connection for each client.
    async client() {
      const boss = make(dsn, { max: 1, supervise: false, schedule: false, migrate: false });
      await boss.start();
      return {
        send: (texts) =>
          texts.length === 1
            ? boss.send(NAME, { m: texts[0] })
            : boss.insert(NAME, texts.map((m) => ({ data: { m } }))),
        async receive() {
          const [job] = await boss.fetch(NAME);
          return job && { id: job.id, text: job.data.m };
        },
        acknowledge: ({ id }) => boss.complete(NAME, id),
        close: () => boss.stop({ graceful: false }),
      };
    },
    async close() {
      await keeper.stop({ graceful: false });
      await connection.query("drop schema pgboss cascade");
      await connection.end();
    },
  };
}
