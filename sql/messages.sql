-- Messages. Each function finds the queue's own, compiled from queue.sql, and calls it: nothing here knows a table.
-- What stands behind "-- @queues" is called directly for the queues that plpy/dispatch.py writes in before "-- @others",
-- and says the same as the dynamic call that follows. An upgrade script that replaces one of these functions ends with
-- select pgmq._dispatch().

-- When a message with this delay becomes visible. Without a delay that is when it is enqueued, to the microsecond:
-- this is how the ready index knows it. A single expression of a plain argument, so that PL/pgSQL takes it in without a
-- call.
create function pgmq._visible_at(delay integer)
returns timestamptz
volatile
language sql
as $function$
    select case
        when delay > 0 then clock_timestamp() + delay::double precision * '1 second'::interval
        when delay is null then pgmq._required('delay'::text)::timestamptz
        else now() + delay::double precision * '1 second'::interval
    end
$function$;
comment on function pgmq._visible_at(integer) is
'Internal: when a message sent now with this delay in seconds becomes visible.';

create function pgmq._check_batch(msgs jsonb[], headers jsonb[])
returns void
language plpgsql
as $function$
begin
    if coalesce(pg_catalog.cardinality(msgs), 0) = 0 then
        raise exception 'pgmq: msgs cannot be NULL or empty'
            using hint = 'Give at least one message; a message may be NULL.';
    elsif pg_catalog.cardinality(headers) <> pg_catalog.cardinality(msgs) then
        raise exception 'pgmq: headers array length (%) must match msgs array length (%)',
            pg_catalog.cardinality(headers), pg_catalog.cardinality(msgs)
            using hint = 'Give one element per message, NULL where it has no headers, or no headers at all.';
    end if;
end
$function$;
comment on function pgmq._check_batch(jsonb[], jsonb[]) is 'Internal: what send_batch refuses.';

create function pgmq.send(queue_name text, msg jsonb)
returns setof bigint
language plpgsql
as $function$
declare
    id bigint;
begin
    -- @queues
    --     id := @send_now@(msg);
    --     if id is not null then
    --         return next id;
    --     end if;
    --     return;
    -- @others
    execute 'select '::text || pgmq._function(queue_name, 'send_now'::text) || '($1)'::text
        into id
        using msg;
    if id is not null then
        return next id;
    end if;
end
$function$;
comment on function pgmq.send(text, jsonb) is
'Sends a message to a queue and returns its id. The message may be NULL.
The other forms take headers (a JSON object beside the message), and a delay: in seconds, or the time at which the
message becomes visible. Errors: 42P01 no such queue, 22004 a NULL delay. Privileges: INSERT on the queue table,
SELECT on its msg_id.';

create function pgmq.send(queue_name text, msg jsonb, headers jsonb)
returns setof bigint
language plpgsql
as $function$
declare
    id bigint;
begin
    -- @queues
    --     id := @send@(msg, headers, now());
    --     if id is not null then
    --         return next id;
    --     end if;
    --     return;
    -- @others
    execute 'select '::text || pgmq._function(queue_name, 'send'::text) || '($1, $2, $3)'::text
        into id
        using msg, headers, now();
    if id is not null then
        return next id;
    end if;
end
$function$;
comment on function pgmq.send(text, jsonb, jsonb) is
'Sends a message with headers, and returns its id. More: send(text, jsonb).';

create function pgmq.send(queue_name text, msg jsonb, delay integer)
returns setof bigint
language plpgsql
as $function$
declare
    id bigint;
begin
    -- @queues
    --     id := @send@(msg, null::jsonb, pgmq._visible_at(delay));
    --     if id is not null then
    --         return next id;
    --     end if;
    --     return;
    -- @others
    execute 'select '::text || pgmq._function(queue_name, 'send'::text) || '($1, $2, $3)'::text
        into id
        using msg, null::jsonb, pgmq._visible_at(delay);
    if id is not null then
        return next id;
    end if;
end
$function$;
comment on function pgmq.send(text, jsonb, integer) is
'Sends a message with a delay in seconds, after which it becomes visible, and returns its id. More: send(text, jsonb).';

create function pgmq.send(queue_name text, msg jsonb, delay timestamptz)
returns setof bigint
language plpgsql
as $function$
declare
    id bigint;
begin
    -- @queues
    --     id := @send@(msg, null::jsonb, coalesce(delay, pgmq._required('delay'::text)::timestamptz));
    --     if id is not null then
    --         return next id;
    --     end if;
    --     return;
    -- @others
    execute 'select '::text || pgmq._function(queue_name, 'send'::text) || '($1, $2, $3)'::text
        into id
        using msg, null::jsonb, coalesce(delay, pgmq._required('delay'::text)::timestamptz);
    if id is not null then
        return next id;
    end if;
end
$function$;
comment on function pgmq.send(text, jsonb, timestamptz) is
'Sends a message with the time at which it becomes visible, and returns its id. More: send(text, jsonb).';

create function pgmq.send(queue_name text, msg jsonb, headers jsonb, delay integer)
returns setof bigint
language plpgsql
as $function$
declare
    id bigint;
begin
    -- @queues
    --     id := @send@(msg, headers, pgmq._visible_at(delay));
    --     if id is not null then
    --         return next id;
    --     end if;
    --     return;
    -- @others
    execute 'select '::text || pgmq._function(queue_name, 'send'::text) || '($1, $2, $3)'::text
        into id
        using msg, headers, pgmq._visible_at(delay);
    if id is not null then
        return next id;
    end if;
end
$function$;
comment on function pgmq.send(text, jsonb, jsonb, integer) is
'Sends a message with headers and a delay in seconds, after which it becomes visible, and returns its id.
More: send(text, jsonb).';

create function pgmq.send(queue_name text, msg jsonb, headers jsonb, delay timestamptz)
returns setof bigint
language plpgsql
as $function$
declare
    id bigint;
begin
    -- @queues
    --     id := @send@(msg, headers, coalesce(delay, pgmq._required('delay'::text)::timestamptz));
    --     if id is not null then
    --         return next id;
    --     end if;
    --     return;
    -- @others
    execute 'select '::text || pgmq._function(queue_name, 'send'::text) || '($1, $2, $3)'::text
        into id
        using msg, headers, coalesce(delay, pgmq._required('delay'::text)::timestamptz);
    if id is not null then
        return next id;
    end if;
end
$function$;
comment on function pgmq.send(text, jsonb, jsonb, timestamptz) is
'Sends a message with headers and the time at which it becomes visible, and returns its id. More: send(text, jsonb).';

create function pgmq.send_batch(queue_name text, msgs jsonb[])
returns setof bigint
language plpgsql
as $function$
begin
    perform pgmq._check_batch(msgs, null::jsonb[]);
    -- @queues
    --     return query
    --         select *
    --         from @send_batch@(msgs, null::jsonb[], now());
    --     return;
    -- @others
    return query execute 'select '::text || pgmq._function(queue_name, 'send_batch'::text) || '($1, $2, $3)'::text
        using msgs, null::jsonb[], now();
end
$function$;
comment on function pgmq.send_batch(text, jsonb[]) is
'Sends messages to a queue and returns their ids, in the order of the messages: all of them or none.
The other forms take headers, one element per message, and a delay for all: in seconds, or the time at which they become
visible. Errors: 42P01 no such queue, P0001 an array that is NULL, empty or of another length, 22004 a NULL delay.
Privileges: INSERT on the queue table, SELECT on its msg_id.';

create function pgmq.send_batch(queue_name text, msgs jsonb[], headers jsonb[])
returns setof bigint
language plpgsql
as $function$
begin
    perform pgmq._check_batch(msgs, headers);
    -- @queues
    --     return query
    --         select *
    --         from @send_batch@(msgs, headers, now());
    --     return;
    -- @others
    return query execute 'select '::text || pgmq._function(queue_name, 'send_batch'::text) || '($1, $2, $3)'::text
        using msgs, headers, now();
end
$function$;
comment on function pgmq.send_batch(text, jsonb[], jsonb[]) is
'Sends messages with headers, one element a message, and returns their ids. More: send_batch(text, jsonb[]).';

create function pgmq.send_batch(queue_name text, msgs jsonb[], delay integer)
returns setof bigint
language plpgsql
as $function$
begin
    perform pgmq._check_batch(msgs, null::jsonb[]);
    -- @queues
    --     return query
    --         select *
    --         from @send_batch@(msgs, null::jsonb[], pgmq._visible_at(delay));
    --     return;
    -- @others
    return query execute 'select '::text || pgmq._function(queue_name, 'send_batch'::text) || '($1, $2, $3)'::text
        using msgs, null::jsonb[], pgmq._visible_at(delay);
end
$function$;
comment on function pgmq.send_batch(text, jsonb[], integer) is
'Sends messages with a delay in seconds, after which they become visible, and returns their ids.
More: send_batch(text, jsonb[]).';

create function pgmq.send_batch(queue_name text, msgs jsonb[], delay timestamptz)
returns setof bigint
language plpgsql
as $function$
begin
    perform pgmq._check_batch(msgs, null::jsonb[]);
    -- @queues
    --     return query
    --         select *
    --         from @send_batch@(msgs, null::jsonb[], coalesce(delay, pgmq._required('delay'::text)::timestamptz));
    --     return;
    -- @others
    return query execute 'select '::text || pgmq._function(queue_name, 'send_batch'::text) || '($1, $2, $3)'::text
        using msgs, null::jsonb[], coalesce(delay, pgmq._required('delay'::text)::timestamptz);
end
$function$;
comment on function pgmq.send_batch(text, jsonb[], timestamptz) is
'Sends messages with the time at which they become visible, and returns their ids. More: send_batch(text, jsonb[]).';

create function pgmq.send_batch(queue_name text, msgs jsonb[], headers jsonb[], delay integer)
returns setof bigint
language plpgsql
as $function$
begin
    perform pgmq._check_batch(msgs, headers);
    -- @queues
    --     return query
    --         select *
    --         from @send_batch@(msgs, headers, pgmq._visible_at(delay));
    --     return;
    -- @others
    return query execute 'select '::text || pgmq._function(queue_name, 'send_batch'::text) || '($1, $2, $3)'::text
        using msgs, headers, pgmq._visible_at(delay);
end
$function$;
comment on function pgmq.send_batch(text, jsonb[], jsonb[], integer) is
'Sends messages with headers, one element a message, and a delay in seconds, after which they become visible, and
returns their ids. More: send_batch(text, jsonb[]).';

create function pgmq.send_batch(queue_name text, msgs jsonb[], headers jsonb[], delay timestamptz)
returns setof bigint
language plpgsql
as $function$
begin
    perform pgmq._check_batch(msgs, headers);
    -- @queues
    --     return query
    --         select *
    --         from @send_batch@(msgs, headers, coalesce(delay, pgmq._required('delay'::text)::timestamptz));
    --     return;
    -- @others
    return query execute 'select '::text || pgmq._function(queue_name, 'send_batch'::text) || '($1, $2, $3)'::text
        using msgs, headers, coalesce(delay, pgmq._required('delay'::text)::timestamptz);
end
$function$;
comment on function pgmq.send_batch(text, jsonb[], jsonb[], timestamptz) is
'Sends messages with headers, one element a message, and the time at which they become visible, and returns their ids.
More: send_batch(text, jsonb[]).';

create function pgmq.read(queue_name text, vt integer, qty integer, conditional jsonb default '{}')
returns setof pgmq.message_record
language plpgsql
as $function$
declare
    found_one pgmq.message_record;
    claimed record;
begin
    if qty = 1 and coalesce(conditional, '{}') = '{}' then
        -- @queues
        --     found_one := @read_one@(coalesce(vt, pgmq._required('vt'::text)::integer));
        --     if found_one.msg_id is not null then
        --         return next found_one;
        --     end if;
        --     return;
        -- @others
        execute 'select '::text || pgmq._function(queue_name, 'read_one'::text) || '($1) as message'::text
            into claimed
            using coalesce(vt, pgmq._required('vt'::text)::integer);
        if claimed.message is distinct from null then
            return next claimed.message;
        end if;
        return;
    end if;
    -- @queues
    --     return query
    --         select *
    --         from @read@(coalesce(vt, pgmq._required('vt'::text)::integer), qty, nullif(conditional, '{}'));
    --     return;
    -- @others
    return query execute 'select * from '::text || pgmq._function(queue_name, 'read'::text) || '($1, $2, $3)'::text
        using coalesce(vt, pgmq._required('vt'::text)::integer), qty, nullif(conditional, '{}');
end
$function$;
comment on function pgmq.read(text, integer, integer, jsonb) is
'Takes up to qty visible messages (NULL: all), oldest id first, and makes them invisible to others for vt seconds, the
visibility timeout; read_ct counts how often. Where conditional is not {}, only messages that contain it (@>) are taken.
A message that is not deleted, popped or archived in time becomes visible again.
Errors: 42P01 no such queue, 22004 a NULL vt, 2201W a negative qty. Privileges: SELECT and UPDATE on the queue table.';

create function pgmq._poll(
    function_name text,
    queue_name text,
    vt integer,
    qty integer,
    max_poll_seconds integer,
    poll_interval_ms integer,
    conditional jsonb
)
returns setof pgmq.message_record
language plpgsql
as $function$
declare
    statement constant text := 'select * from pgmq.'::text || quote_ident(function_name) || '($1, $2, $3'::text
        || case when conditional is null then ')'::text else ', $4)'::text end;
    deadline constant timestamptz := clock_timestamp()
        + coalesce(max_poll_seconds, pgmq._required('max_poll_seconds'::text)::integer)::double precision
        * '1 second'::interval;
    pause constant double precision := 0.001::double precision * greatest(
        coalesce(poll_interval_ms, pgmq._required('poll_interval_ms'::text)::integer),
        1
    )::double precision;
begin
    loop
        return query execute statement using queue_name, vt, qty, conditional;
        exit when found or clock_timestamp() >= deadline;
        perform pg_sleep(least(pause, date_part('epoch'::text, deadline - clock_timestamp())));
    end loop;
end
$function$;
comment on function pgmq._poll(text, text, integer, integer, integer, integer, jsonb) is
'Internal: calls a function that reads until it returns something or the time is up.';

create function pgmq.read_with_poll(
    queue_name text,
    vt integer,
    qty integer,
    max_poll_seconds integer default 5,
    poll_interval_ms integer default 100,
    conditional jsonb default '{}'
)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    return query
        select *
        from pgmq._poll('read', queue_name, vt, qty, max_poll_seconds, poll_interval_ms, conditional);
end
$function$;
comment on function pgmq.read_with_poll(text, integer, integer, integer, integer, jsonb) is
'As read, but where there is nothing it looks again every poll_interval_ms milliseconds, for max_poll_seconds seconds at
most. While it waits the session holds a snapshot; in REPEATABLE READ and SERIALIZABLE it sees nothing new.
Errors and privileges: as read; 22004 for a NULL time.';

create function pgmq.pop(queue_name text, qty integer default 1)
returns setof pgmq.message_record
language plpgsql
as $function$
declare
    found_one pgmq.message_record;
    claimed record;
begin
    if qty = 1 then
        -- @queues
        --     found_one := @pop_one@();
        --     if found_one.msg_id is not null then
        --         return next found_one;
        --     end if;
        --     return;
        -- @others
        execute 'select '::text || pgmq._function(queue_name, 'pop_one'::text) || '() as message'::text
            into claimed;
        if claimed.message is distinct from null then
            return next claimed.message;
        end if;
        return;
    end if;
    -- @queues
    --     return query
    --         select *
    --         from @pop@(qty);
    --     return;
    -- @others
    return query execute 'select * from '::text || pgmq._function(queue_name, 'pop'::text) || '($1)'::text
        using qty;
end
$function$;
comment on function pgmq.pop(text, integer) is
'Removes up to qty visible messages (NULL: all), oldest id first, and returns them. One that the client then loses is
gone.
Errors: 42P01 no such queue, 2201W a negative qty. Privileges: SELECT, UPDATE and DELETE on the queue table.';

create function pgmq.delete(queue_name text, msg_id bigint)
returns boolean
language plpgsql
as $function$
declare
    deleted boolean;
begin
    -- @queues
    --     return @delete@(msg_id);
    -- @others
    execute 'select '::text || pgmq._function(queue_name, 'delete'::text) || '($1)'::text
        into deleted
        using msg_id;
    return deleted;
end
$function$;
comment on function pgmq.delete(text, bigint) is
'Deletes a message, visible or not, and returns whether it was there.
Errors: 42P01 no such queue. Privileges: SELECT and DELETE on the queue table.';

create function pgmq.delete(queue_name text, msg_ids bigint[])
returns setof bigint
language plpgsql
as $function$
begin
    -- @queues
    --     return query
    --         select *
    --         from @delete_batch@(msg_ids);
    --     return;
    -- @others
    return query execute 'select '::text || pgmq._function(queue_name, 'delete_batch'::text) || '($1)'::text
        using msg_ids;
end
$function$;
comment on function pgmq.delete(text, bigint[]) is
'Deletes messages, visible or not, and returns the ids of those that were there.
Errors: 42P01 no such queue. Privileges: SELECT and DELETE on the queue table.';

create function pgmq.archive(queue_name text, msg_id bigint)
returns boolean
language plpgsql
as $function$
declare
    archived boolean;
begin
    -- @queues
    --     return exists (select from @archive@(array[msg_id]));
    -- @others
    execute 'select exists (select from '::text || pgmq._function(queue_name, 'archive'::text) || '($1))'::text
        into archived
        using array[msg_id];
    return archived;
end
$function$;
comment on function pgmq.archive(text, bigint) is
'Moves a message, visible or not, from the queue to its archive table pgmq.a_<queue>, and returns whether it was there.
Errors: 42P01 no such queue. Privileges: SELECT and DELETE on the queue table, SELECT and INSERT on the archive.';

create function pgmq.archive(queue_name text, msg_ids bigint[])
returns setof bigint
language plpgsql
as $function$
begin
    -- @queues
    --     return query
    --         select *
    --         from @archive@(msg_ids);
    --     return;
    -- @others
    return query execute 'select '::text || pgmq._function(queue_name, 'archive'::text) || '($1)'::text
        using msg_ids;
end
$function$;
comment on function pgmq.archive(text, bigint[]) is
'Moves messages, visible or not, from the queue to its archive table pgmq.a_<queue>, and returns the ids of those that
were there. Errors: 42P01 no such queue. Privileges: SELECT and DELETE on the queue table, SELECT and INSERT on the
archive.';

create function pgmq.set_vt(queue_name text, msg_id bigint, vt integer)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    -- @queues
    --     return query
    --         select *
    --         from @set_vt@(
    --             array[msg_id],
    --             clock_timestamp() + coalesce(vt, pgmq._required('vt'::text)::integer)::double precision * '1 second'::interval
    --         );
    --     return;
    -- @others
    return query execute 'select * from '::text || pgmq._function(queue_name, 'set_vt'::text) || '($1, $2)'::text
        using array[msg_id], clock_timestamp() + coalesce(vt, pgmq._required('vt'::text)::integer)::double precision * '1 second'::interval;
end
$function$;
comment on function pgmq.set_vt(text, bigint, integer) is
'Sets the visibility timeout of a message anew, to vt seconds from now, 0 for at once. Returns the changed rows.
Errors: 42P01 no such queue, 22004 a NULL vt. Privileges: SELECT and UPDATE on the queue table.';

create function pgmq.set_vt(queue_name text, msg_id bigint, vt timestamptz)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    -- @queues
    --     return query
    --         select *
    --         from @set_vt@(array[msg_id], coalesce(vt, pgmq._required('vt'::text)::timestamptz));
    --     return;
    -- @others
    return query execute 'select * from '::text || pgmq._function(queue_name, 'set_vt'::text) || '($1, $2)'::text
        using array[msg_id], coalesce(vt, pgmq._required('vt'::text)::timestamptz);
end
$function$;
comment on function pgmq.set_vt(text, bigint, timestamptz) is
'Sets the time at which a message becomes visible. Returns the changed rows.
Errors: 42P01 no such queue, 22004 a NULL vt. Privileges: SELECT and UPDATE on the queue table.';

create function pgmq.set_vt(queue_name text, msg_ids bigint[], vt integer)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    -- @queues
    --     return query
    --         select *
    --         from @set_vt@(
    --             msg_ids,
    --             clock_timestamp() + coalesce(vt, pgmq._required('vt'::text)::integer)::double precision * '1 second'::interval
    --         );
    --     return;
    -- @others
    return query execute 'select * from '::text || pgmq._function(queue_name, 'set_vt'::text) || '($1, $2)'::text
        using msg_ids, clock_timestamp() + coalesce(vt, pgmq._required('vt'::text)::integer)::double precision * '1 second'::interval;
end
$function$;
comment on function pgmq.set_vt(text, bigint[], integer) is
'Sets the visibility timeout of messages anew, to vt seconds from now, 0 for at once. Returns the changed rows.
Errors: 42P01 no such queue, 22004 a NULL vt. Privileges: SELECT and UPDATE on the queue table.';

create function pgmq.set_vt(queue_name text, msg_ids bigint[], vt timestamptz)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    -- @queues
    --     return query
    --         select *
    --         from @set_vt@(msg_ids, coalesce(vt, pgmq._required('vt'::text)::timestamptz));
    --     return;
    -- @others
    return query execute 'select * from '::text || pgmq._function(queue_name, 'set_vt'::text) || '($1, $2)'::text
        using msg_ids, coalesce(vt, pgmq._required('vt'::text)::timestamptz);
end
$function$;
comment on function pgmq.set_vt(text, bigint[], timestamptz) is
'Sets the time at which messages become visible. Returns the changed rows.
Errors: 42P01 no such queue, 22004 a NULL vt. Privileges: SELECT and UPDATE on the queue table.';
