// RSMQ, on the socket that the connection string names.
import redis from "redis";
import RedisSMQ from "rsmq";

const NAME = "bench";

function connect(path) {
  return new RedisSMQ({ client: redis.createClient({ path }) });
}

export async function open(path) {
  const keeper = connect(path);
  await keeper.createQueueAsync({ qname: NAME, vt: 60, maxsize: -1 });
  return {
    async client() {
      const rsmq = connect(path);
      await rsmq.getQueueAttributesAsync({ qname: NAME });
      return {
        // It has no batch: a batch is sent without waiting for each message.
        send: (texts) => Promise.all(texts.map((text) => rsmq.sendMessageAsync({ qname: NAME, message: text }))),
        async receive() {
          const { id, message } = await rsmq.receiveMessageAsync({ qname: NAME });
          return id && { id, text: message };
        },
        acknowledge: ({ id }) => rsmq.deleteMessageAsync({ qname: NAME, id }),
        close: () => new Promise((resolve) => rsmq.quit(resolve)),
      };
    },
    async close() {
      await keeper.deleteQueueAsync({ qname: NAME });
      await new Promise((resolve) => keeper.quit(resolve));
    },
  };
}
