-- Message groups: FIFO within a group, the header x-pgmq-group. Messages without it are one group.

create function pgmq.read_grouped(queue_name text, vt integer, qty integer)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    return query execute 'select * from ' || pgmq._function(queue_name, 'read_grouped') || '($1, $2)'
        using coalesce(vt, pgmq._required('vt'::text)::integer), qty;
end
$function$;
comment on function pgmq.read_grouped(text, integer, integer) is
'Takes up to qty visible messages for vt seconds: from the group with the oldest message first, then from the next.
Groups (the header x-pgmq-group) come in the order of their oldest messages. While that of a group is invisible, or
another transaction holds it, the group gives nothing: so messages of a group are handed out in order, to one reader at
a time. A NULL qty means all. create_fifo_index makes it fast.
Errors: 42P01 no such queue, 22004 a NULL vt, 2201W a negative qty. Privileges: SELECT and UPDATE on the queue table.';

create function pgmq.read_grouped_with_poll(
    queue_name text,
    vt integer,
    qty integer,
    max_poll_seconds integer default 5,
    poll_interval_ms integer default 100
)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    return query
        select *
        from pgmq._poll('read_grouped', queue_name, vt, qty, max_poll_seconds, poll_interval_ms, null);
end
$function$;
comment on function pgmq.read_grouped_with_poll(text, integer, integer, integer, integer) is
'As read_grouped, but where there is nothing it looks again every poll_interval_ms milliseconds, for max_poll_seconds
seconds at most. Errors and privileges: as read_grouped; 22004 for a NULL time.';

create function pgmq.read_grouped_rr(queue_name text, vt integer, qty integer)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    return query execute 'select * from ' || pgmq._function(queue_name, 'grouped_rr') || '($1, $2)'
        using coalesce(vt, pgmq._required('vt'::text)::integer), qty;
end
$function$;
comment on function pgmq.read_grouped_rr(text, integer, integer) is
'Takes up to qty visible messages for vt seconds: one of each group in turn, and returns them in that order.
Groups (the header x-pgmq-group) come in the order of their oldest messages. While that of a group is invisible, or
another transaction holds it, the group gives nothing: so messages of a group are handed out in order, to one reader at
a time. A NULL qty means all. create_fifo_index makes it fast.
Errors: 42P01 no such queue, 22004 a NULL vt, 2201W a negative qty. Privileges: SELECT and UPDATE on the queue table.';

create function pgmq.read_grouped_rr_with_poll(
    queue_name text,
    vt integer,
    qty integer,
    max_poll_seconds integer default 5,
    poll_interval_ms integer default 100
)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    return query
        select *
        from pgmq._poll('read_grouped_rr', queue_name, vt, qty, max_poll_seconds, poll_interval_ms, null);
end
$function$;
comment on function pgmq.read_grouped_rr_with_poll(text, integer, integer, integer, integer) is
'As read_grouped_rr, but where there is nothing it looks again every poll_interval_ms milliseconds, for max_poll_seconds
seconds at most. Errors and privileges: as read_grouped_rr; 22004 for a NULL time.';

create function pgmq.read_grouped_head(queue_name text, vt integer, qty integer)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    return query execute 'select * from ' || pgmq._function(queue_name, 'grouped_head') || '($1, $2)'
        using coalesce(vt, pgmq._required('vt'::text)::integer), qty;
end
$function$;
comment on function pgmq.read_grouped_head(text, integer, integer) is
'Takes one message, the oldest, of each of up to qty groups, for vt seconds.
Groups (the header x-pgmq-group) come in the order of their oldest messages. While that of a group is invisible, or
another transaction holds it, the group gives nothing: so messages of a group are handed out in order, to one reader at
a time. A NULL qty means all. create_fifo_index makes it fast.
Errors: 42P01 no such queue, 22004 a NULL vt, 2201W a negative qty. Privileges: SELECT and UPDATE on the queue table.';

create function pgmq.read_grouped_head_with_poll(
    queue_name text,
    vt integer,
    qty integer,
    max_poll_seconds integer default 5,
    poll_interval_ms integer default 100
)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    return query
        select *
        from pgmq._poll('read_grouped_head', queue_name, vt, qty, max_poll_seconds, poll_interval_ms, null);
end
$function$;
comment on function pgmq.read_grouped_head_with_poll(text, integer, integer, integer, integer) is
'As read_grouped_head, but where there is nothing it looks again every poll_interval_ms milliseconds, for
max_poll_seconds seconds at most. Errors and privileges: as read_grouped_head; 22004 for a NULL time.';
