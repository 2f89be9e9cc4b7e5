-- Notifications. The trigger function of a queue is made from queue.sql; notifications.py turns it on and off.

create function pgmq.list_notify_insert_throttles()
returns table (queue_name text, throttle_interval_ms integer, last_notified_at timestamptz)
stable
language sql
as $function$
    select t.queue_name::text,
        t.throttle_interval_ms,
        coalesce(
            to_timestamp(
                pg_sequence_last_value(
                    to_regclass('pgmq.'::text || quote_ident(pgmq._stem(t.queue_name::text) || '$notified'::text))
                )::double precision / 1000000::double precision
            ),
            t.last_notified_at
        )
    from pgmq.notify_insert_throttle as t
    order by t.queue_name
$function$;
comment on function pgmq.list_notify_insert_throttles() is
'Lists the queues that notify of inserts, with the least time between two notifications in milliseconds, 0 for none,
and the time of the last insert that notified, even if its transaction is still open or was rolled back; 1970 where
there was none since the throttle was set. Privileges: SELECT on pgmq.notify_insert_throttle.';

create function pgmq.notify_queue_listeners()
returns trigger
language plpgsql
as $function$
begin
    perform pg_notify(('pgmq.'::text || tg_table_name::text || '.INSERT'::text)::name::text, ''::text);
    return new;
end
$function$;
comment on function pgmq.notify_queue_listeners() is
'A trigger function that notifies of each insert, without a throttle, for tables that came with a trigger of that name
from another version. enable_notify_insert replaces such a trigger by the queue''s own function, disable_notify_insert
drops it.
Privileges: none.';
