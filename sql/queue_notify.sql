-- Templates of one queue, see queue.sql: notifications of inserts.

-- @section notify_memory
-- When an insert last notified (microseconds since 1970), and the transaction that did. Sequences, since no sender
-- may wait for another's transaction: nothing is locked, and no row versions pile up.
-- @each name in notify_memory
@fragment:own_sequence@
-- @end
grant select on @sequence:notified@ to public;

-- @section notify
select setval(@literal:notified@, 1, false), setval(@literal:notifier@, 1, false);

-- SECURITY DEFINER, so that whoever may insert needs no privilege on the sequences, with which it could silence
-- others.
create or replace function @function:notify@()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
declare
    moment constant bigint := date_part('epoch', clock_timestamp()) * 1000000;
    throttle constant bigint := @throttle@ * 1000::bigint;
    notifier bigint;
    current_id bigint;
    last_id bigint;
    ahead bigint;
begin
    if tg_relid <> @literal:queue@::regclass then
        return null;
    end if;

    -- Only a notification that has been committed may stand for this one: another might never be sent. The time is
    -- read before the transaction and written after it, so that the transaction is never older than the time.
    if throttle > 0 and pg_sequence_last_value(@literal:notified@) between moment - throttle and moment then
        notifier := pg_sequence_last_value(@literal:notifier@);
        if notifier < pg_snapshot_xmax(pg_current_snapshot())::text::bigint then
            if pg_xact_status(notifier::text::xid8) = 'committed' then
                return null;
            end if;
        end if;
    end if;

    perform pg_notify(@literal:channel@, '');
    if throttle = 0 then
        perform setval(@literal:notified@, moment);
        return null;
    end if;

    -- The transaction that counts may be a savepoint's, which rolls back by itself: the row just inserted has its id,
    -- as 32 bits. A session that has never drawn an id for a message, as in a restore, leaves no trace.
    current_id := pg_current_xact_id()::text::bigint;
    begin
        last_id := currval(pg_get_serial_sequence(@literal:queue@, 'msg_id'));
    exception
        when object_not_in_prerequisite_state then
            return null;
    end;
    select (q.xmin::text::bigint - current_id) & 4294967295
    into ahead
    from @queue@ as q
    where q.msg_id = last_id;
    if ahead < 2147483648 then
        perform setval(@literal:notifier@, current_id + ahead);
        perform setval(@literal:notified@, moment);
    end if;
    return null;
end
$function$;
alter function @function:notify@() owner to @owner@;
comment on function @function:notify@() is 'Made by pgmq.enable_notify_insert: notifies of inserts into the queue.';

-- @section notify_trigger
create trigger notify_insert
after insert on @queue@
for each statement execute function @function:notify@();
