"""A call of each function that takes the name of a queue, for what must hold for all of them."""

from __future__ import annotations

# What a name that names no queue makes of them: refused with 42P01.
NEED_A_QUEUE = {
    "send(text, jsonb)": "select pgmq.send(%s, '{}')",
    "send(text, jsonb, jsonb)": "select pgmq.send(%s, '{}', '{}'::jsonb)",
    "send(text, jsonb, integer)": "select pgmq.send(%s, '{}', 0)",
    "send(text, jsonb, timestamp with time zone)": "select pgmq.send(%s, '{}', now())",
    "send(text, jsonb, jsonb, integer)": "select pgmq.send(%s, '{}', '{}', 0)",
    "send(text, jsonb, jsonb, timestamp with time zone)": "select pgmq.send(%s, '{}', '{}', now())",
    "send_batch(text, jsonb[])": "select pgmq.send_batch(%s, array['{}']::jsonb[])",
    "send_batch(text, jsonb[], jsonb[])": "select pgmq.send_batch(%s, array['{}']::jsonb[], array['{}']::jsonb[])",
    "send_batch(text, jsonb[], integer)": "select pgmq.send_batch(%s, array['{}']::jsonb[], 0)",
    "send_batch(text, jsonb[], timestamp with time zone)": "select pgmq.send_batch(%s, array['{}']::jsonb[], now())",
    "send_batch(text, jsonb[], jsonb[], integer)": (
        "select pgmq.send_batch(%s, array['{}']::jsonb[], array['{}']::jsonb[], 0)"
    ),
    "send_batch(text, jsonb[], jsonb[], timestamp with time zone)": (
        "select pgmq.send_batch(%s, array['{}']::jsonb[], array['{}']::jsonb[], now())"
    ),
    "read(text, integer, integer, jsonb)": "select pgmq.read(%s, 0, 1)",
    "read_with_poll(text, integer, integer, integer, integer, jsonb)": "select pgmq.read_with_poll(%s, 0, 1, 0)",
    "set_vt(text, bigint, integer)": "select pgmq.set_vt(%s, 1, 0)",
    "set_vt(text, bigint, timestamp with time zone)": "select pgmq.set_vt(%s, 1, now())",
    "set_vt(text, bigint[], integer)": "select pgmq.set_vt(%s, array[1], 0)",
    "set_vt(text, bigint[], timestamp with time zone)": "select pgmq.set_vt(%s, array[1], now())",
    "pop(text, integer)": "select pgmq.pop(%s)",
    "delete(text, bigint)": "select pgmq.delete(%s, 1)",
    "delete(text, bigint[])": "select pgmq.delete(%s, array[1, 2])",
    "archive(text, bigint)": "select pgmq.archive(%s, 1)",
    "archive(text, bigint[])": "select pgmq.archive(%s, array[1, 2])",
    "metrics(text)": "select pgmq.metrics(%s)",
    "purge_queue(text)": "select pgmq.purge_queue(%s)",
    "compile(text)": "select pgmq.compile(%s)",
}

# These make a queue, or do not mind that there is none.
NEED_A_NAME = {
    "create(text)": "select pgmq.create(%s)",
    "create_non_partitioned(text)": "select pgmq.create_non_partitioned(%s)",
    "create_unlogged(text)": "select pgmq.create_unlogged(%s)",
    "drop_queue(text)": "select pgmq.drop_queue(%s)",
    "drop_queue(text, boolean)": "select pgmq.drop_queue(%s, false)",
    "detach_archive(text)": "select pgmq.detach_archive(%s)",
    "acquire_queue_lock(text)": "select pgmq.acquire_queue_lock(%s)",
    "validate_queue_name(text)": "select pgmq.validate_queue_name(%s)",
    "format_table_name(text, text)": "select pgmq.format_table_name(%s, 'q')",
}

ALL = {**NEED_A_QUEUE, **NEED_A_NAME}
