// RabbitMQ: a durable classic queue, publisher confirms, manual acknowledgements.
import amqplib from "amqplib";

const NAME = "bench";

export async function open(url) {
  const keeper = await amqplib.connect(url);
  const channel = await keeper.createChannel();
  await channel.deleteQueue(NAME);
  await channel.assertQueue(NAME, { durable: true });
  const consuming = [];
  let held = 0;

  // Each client has a connection.
  async function connect(clients, work) {
    const connections = await Promise.all(Array.from({ length: clients }, () => amqplib.connect(url)));
    const made = await Promise.all(connections.map(work));
    return [made, () => Promise.all(connections.map((connection) => connection.close()))];
  }

  return {
    async producers(clients) {
      const [sends, close] = await connect(clients, async (connection) => {
        const channel = await connection.createConfirmChannel();
        const publish = (text) =>
          new Promise((resolve, reject) => {
            channel.sendToQueue(NAME, Buffer.from(text), { persistent: true }, (error) =>
              error ? reject(error) : resolve(),
            );
          });
        // It has no batch: a batch is published without waiting for the confirm of each message.
        return (texts) => Promise.all(texts.map(publish));
      });
      return { sends, close };
    },
    async consumers(clients, handler) {
      const [, close] = await connect(clients, async (connection) => {
        const channel = await connection.createChannel();
        await channel.prefetch(100);
        await channel.consume(NAME, async (message) => {
          held++;
          await handler(message.content.toString());
          channel.ack(message);
          held--;
        });
        consuming.push(channel);
      });
      return {
        close() {
          consuming.length = 0;
          return close();
        },
      };
    },
    async unacknowledged() {
      // A channel answers after it has done what it was told before, acknowledgements among it.
      await Promise.all(consuming.map((channel) => channel.checkQueue(NAME)));
      return held + (await channel.checkQueue(NAME)).messageCount;
    },
    async close() {
      await channel.deleteQueue(NAME);
      await keeper.close();
    },
  };
}
