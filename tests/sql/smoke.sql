-- A queue end to end, for `make installcheck`.
\set SHOW_CONTEXT never
select pgmq.create('smoke');
select * from pgmq.send('smoke', '{"n": 1}');
select * from pgmq.send('smoke', '{"n": 2}', '{"priority": "high"}'::jsonb, 0);
select * from pgmq.send_batch('smoke', array['{"n": 3}', '{"n": 4}']::jsonb[], 3600);
select msg_id, read_ct, message, headers from pgmq.read('smoke', 30, 10);
select msg_id from pgmq.read('smoke', 30, 10);
select msg_id, read_ct from pgmq.set_vt('smoke', 2, 0);
select msg_id, read_ct, message from pgmq.pop('smoke');
select pgmq.archive('smoke', 3);
select pgmq.delete('smoke', array[1, 4, 5]);
select msg_id, read_ct, message from pgmq.a_smoke;
select queue_name, queue_length, total_messages from pgmq.metrics('smoke');
select pgmq.send('smok', '{}');
select pgmq.drop_queue('smoke');
