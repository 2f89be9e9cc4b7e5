// npm's pgmq-js. The PG_* variables name the database.
const assert = require("node:assert/strict");
const { Pgmq } = require("pgmq-js");

async function messages(pgmq) {
    const { queue, msg } = pgmq;
    await queue.create("orders");
    await queue.createUnlogged("fast");
    const queues = await queue.list();
    assert.deepEqual(
        queues.map(({ name, isPartitioned, isUnlogged }) => [name, isPartitioned, isUnlogged]).sort(),
        [["fast", false, true], ["orders", false, false]],
    );
    await assert.rejects(queue.create("q".repeat(48)), /47/);

    assert.equal(await msg.read("orders", 30), undefined);
    assert.deepEqual(await msg.readBatch("orders", 30, 9), []);
    assert.equal(await msg.pop("orders"), undefined);
    assert.equal(await msg.send("orders", { item: "tea" }), 1);
    assert.equal(await msg.send("orders", { item: "cake" }, 3600), 2);
    assert.deepEqual(await msg.sendBatch("orders", [{ n: 1 }, { n: 2 }, { n: 3 }]), [3, 4, 5]);
    assert.deepEqual(await msg.sendBatch("orders", [{ n: 4 }, { n: 5 }], 3600), [6, 7]);

    const before = Date.now();
    const tea = await msg.read("orders", 30);
    assert.deepEqual([tea.msgId, tea.readCount, tea.message], [1, 1, { item: "tea" }]);
    assert.ok(tea.enqueuedAt <= before && tea.vt > before + 20_000);
    assert.deepEqual((await msg.readBatch("orders", 30, 2)).map((each) => each.msgId), [3, 4]);
    // The client gives its arguments no types, so the server cannot choose among the forms of set_vt, the reference's
    // as little as ours.
    await assert.rejects(msg.setVt("orders", 1, 0), /is not unique/);
    assert.deepEqual((await msg.pop("orders")).message, { n: 3 });

    const metrics = await queue.getMetrics("orders");
    assert.deepEqual([metrics.queueName, metrics.queueLength, metrics.totalMessages], ["orders", 6, 7]);
    assert.ok(metrics.newestMsgAgeSec <= metrics.oldestMsgAgeSec && metrics.oldestMsgAgeSec <= 60);
    assert.deepEqual((await queue.getAllMetrics()).map((each) => each.queueName).sort(), ["fast", "orders"]);
    assert.equal((await queue.getMetrics("fast")).newestMsgAgeSec, undefined);
    assert.deepEqual([await msg.delete("orders", 2), await msg.delete("orders", 2)], [true, false]);
    assert.deepEqual([await msg.archive("orders", 3), await msg.archive("orders", 3)], [true, false]);
    assert.deepEqual(await msg.deleteBatch("orders", [4, 99]), [4]);
    assert.deepEqual((await msg.archiveBatch("orders", [6, 7, 99])).sort(), [6, 7]);
    await queue.purge("orders");
    assert.equal((await queue.getMetrics("orders")).queueLength, 0);
    await queue.detachArchive("orders");
    await queue.drop("orders");
    assert.deepEqual((await queue.list()).map(({ name }) => name), ["fast"]);
    await assert.rejects(msg.send("orders", {}), /orders/);
}

async function main() {
    const { PG_HOST, PG_PORT, PG_USERNAME, PG_PASSWORD, PG_DATABASE } = process.env;
    const pgmq = await Pgmq.new({
        host: PG_HOST,
        port: Number(PG_PORT),
        user: PG_USERNAME,
        password: PG_PASSWORD,
        database: PG_DATABASE,
        ssl: false,
    });
    await messages(pgmq);
    await pgmq.close();
}

main();
