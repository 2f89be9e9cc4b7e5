-- The templates of one queue. pgmq.create fills them in and runs them; nothing here is run as it stands.
--
--   @queue@, @archive@      the tables, qualified and quoted
--   @function:read@         the queue's own function of that name, qualified and quoted: pgmq."q_orders$read"
--   @sequence:head@         the queue's own sequence, likewise
--   @literal:head@          the same as a string literal
--   @persistence@           "unlogged" or nothing, for the table
--   @unlogged@              "unlogged" where the server knows unlogged sequences (PostgreSQL 15), else nothing
--   @fragment:claim@        the fragment of that name from this file, so that functions that differ only in their end
--                           share the rest without paying for a call
--
--   @literal:channel@       where notifications are on, the channel as a string literal
--   @throttle@              and the least time between two of them, in milliseconds
--   @owner@                 and the owner of the queue's table, quoted
--
-- "$" is refused in queue names, so no table, sequence or function of another queue can have one of these names.
--
-- How a read finds its messages is told in docs/internals.md. In short: the index "ready" holds what was never read nor
-- delayed, in the order of ids; the index "parked" holds what is in flight, delayed or due again, in the order of vt.
-- Three sequences serve as memory without row versions: nothing ready was left below the id in "head" when it was
-- written, nothing due was left before the time in "due" (microseconds since 1970), and at the time in "sweep"
-- (milliseconds since 1970) a reader looks below both for what a late commit or a rollback left there. They are hints:
-- a wrong one costs time or up to a second of delay, never a message.

-- @section tables
create @persistence@ table if not exists @queue@ (
    msg_id bigint primary key generated always as identity,
    read_ct integer not null default 0,
    enqueued_at timestamptz not null default now(),
    last_read_at timestamptz,
    vt timestamptz not null,
    message jsonb,
    headers jsonb
);

create table if not exists @archive@ (
    msg_id bigint primary key,
    read_ct integer not null default 0,
    enqueued_at timestamptz not null default now(),
    last_read_at timestamptz,
    archived_at timestamptz not null default now(),
    vt timestamptz not null,
    message jsonb,
    headers jsonb
);

create index if not exists @index:archived@ on @archive@ (archived_at);

-- @section indexes
create index if not exists @index:ready@ on @queue@ (msg_id) where vt <= enqueued_at;

create index if not exists @index:parked@ on @queue@ (vt) where vt > enqueued_at;

-- @section settings
-- Every message is written twice in its page (sent, read) and then deleted: room for the second row, and a vacuum that
-- comes by the number of dead rows rather than by their share of a table that is usually empty.
alter table @queue@ set (
    fillfactor = 70,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

-- @section hints
create @unlogged@ sequence if not exists @sequence:head@ owned by @queue@.vt;
create @unlogged@ sequence if not exists @sequence:due@ owned by @queue@.vt;
create @unlogged@ sequence if not exists @sequence:sweep@ owned by @queue@.vt;
grant select on @sequence:head@, @sequence:due@, @sequence:sweep@ to public;

-- @section privileges
grant select on @queue@, @archive@ to pg_monitor;
do $do$
begin
    execute format('grant select on sequence %s to pg_monitor', pg_get_serial_sequence(@literal:queue@, 'msg_id'));
end
$do$;

-- Plans are kept, often from when the table was empty: they must be index scans then too. The estimates that follow from
-- that must not wake the JIT compiler, and the plan must be the same whatever the parameters.
-- @fragment settings
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan

-- @fragment claim_variables
moment constant timestamptz := clock_timestamp();
head bigint := 0;
due timestamptz;
backlog bigint;
claimed tid[];
lowest bigint;

-- @fragment claim
-- Locks the oldest visible messages, in the order of ids, and leaves them in "claimed". A message that another
-- transaction holds is passed over.
if date_part('epoch', moment) * 1000 >= coalesce(pg_sequence_last_value(@literal:sweep@), 0) then
    perform @function:sweep@(moment);
end if;
due := to_timestamp(coalesce(pg_sequence_last_value(@literal:due@), 0) * 0.000001::double precision);
if condition is null then
    head := coalesce(pg_sequence_last_value(@literal:head@), 0);
end if;

-- While nothing is due again, the ready messages are all there is, and they are in order.
select array_agg(c.row_id), min(c.msg_id)
into claimed, lowest
from (
    select m.ctid as row_id, m.msg_id
    from @queue@ as m
    where m.vt <= m.enqueued_at
        and m.msg_id >= head
        and m.vt <= moment
        and (condition is null or m.message @> condition)
    order by m.msg_id
    limit case
        when exists (
            select
            from @queue@ as d
            where d.vt > d.enqueued_at
                and d.vt >= due
                and d.vt <= moment
        ) then 0
        else quantity
    end
    for update skip locked
) as c;

if claimed is null then
    select count(*)
    into backlog
    from (
        select
        from @queue@ as d
        where d.vt > d.enqueued_at
            and d.vt >= due
            and d.vt <= moment
        limit 1000
    ) as b;
    if backlog = 0 then
        return;
    elsif backlog < 1000 then
        -- The few that are due are sorted by id and merged with the ready ones. The join back to the table is what
        -- can be locked row by row, as far as the limit goes; a row changed meanwhile must still be visible.
        select array_agg(c.row_id), min(c.msg_id) filter (where c.ready)
        into claimed, lowest
        from (
            select q.ctid as row_id, k.msg_id, k.ready
            from (
                select m.msg_id, m.ctid as row_id, true as ready
                from @queue@ as m
                where m.vt <= m.enqueued_at
                    and m.msg_id >= head
                    and m.vt <= moment
                union all
                select d.msg_id, d.ctid, false
                from @queue@ as d
                where d.vt > d.enqueued_at
                    and d.vt >= due
                    and d.vt <= moment
                order by msg_id
            ) as k
            join @queue@ as q on q.ctid = k.row_id
            where q.vt <= moment
                and (condition is null or q.message @> condition)
            order by k.msg_id
            limit quantity
            for update of q skip locked
        ) as c;
    else
        -- With many due, visible messages are dense: walk all messages by id.
        select array_agg(c.row_id)
        into claimed
        from (
            select m.ctid as row_id
            from @queue@ as m
            where m.vt <= moment
                and (condition is null or m.message @> condition)
            order by m.msg_id
            limit quantity
            for update skip locked
        ) as c;
    end if;
    if claimed is null then
        return;
    end if;
end if;

-- One read in many moves the hints up: what it saves the others is some dead rows to step over.
if condition is null and random() * 32 < cardinality(claimed) then
    perform @function:advance@(lowest, 4::bigint * quantity, moment);
end if;

-- @fragment remember
if has_sequence_privilege(@literal:head@, 'UPDATE') then
    perform @function:hint@(new_head, new_due, new_sweep);
else
    perform @function:owner_hint@(new_head, new_due, new_sweep);
end if;

-- @section functions
create or replace function @function:send@(content jsonb, properties jsonb, visible_at timestamptz)
returns bigint
language plpgsql
as $function$
declare
    id bigint;
begin
    insert into @queue@ (vt, message, headers)
    values (visible_at, content, properties)
    returning msg_id into id;
    return id;
end
$function$;

create or replace function @function:send_batch@(contents jsonb[], properties jsonb[], visible_at timestamptz)
returns setof bigint
language plpgsql
as $function$
begin
    -- unnest returns the elements in their order, and an insert numbers its rows as they come.
    return query
        insert into @queue@ (vt, message, headers)
        select visible_at, content, property
        from unnest(contents, properties) as t (content, property)
        returning msg_id;
end
$function$;

create or replace function @function:read@(seconds integer, quantity integer, condition jsonb)
returns table (
    msg_id bigint,
    read_ct integer,
    enqueued_at timestamptz,
    last_read_at timestamptz,
    vt timestamptz,
    message jsonb,
    headers jsonb
)
language plpgsql
@fragment:settings@
as $function$
#variable_conflict use_column
declare
    @fragment:claim_variables@
begin
    @fragment:claim@
    if cardinality(claimed) = 1 then
        return query
            update @queue@ as q
            set vt = moment + seconds * interval '1 second',
                read_ct = q.read_ct + 1,
                last_read_at = moment
            where q.ctid = any (claimed)
            returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers;
    else
        return query
            with changed as (
                update @queue@ as q
                set vt = moment + seconds * interval '1 second',
                    read_ct = q.read_ct + 1,
                    last_read_at = moment
                where q.ctid = any (claimed)
                returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
            )
            select *
            from changed as c
            order by c.msg_id;
    end if;
end
$function$;

create or replace function @function:pop@(quantity integer)
returns table (
    msg_id bigint,
    read_ct integer,
    enqueued_at timestamptz,
    last_read_at timestamptz,
    vt timestamptz,
    message jsonb,
    headers jsonb
)
language plpgsql
@fragment:settings@
as $function$
#variable_conflict use_column
declare
    condition constant jsonb := null;
    @fragment:claim_variables@
begin
    @fragment:claim@
    return query
        with removed as (
            delete from @queue@ as q
            where q.ctid = any (claimed)
            returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        )
        select *
        from removed as r
        order by r.msg_id;
end
$function$;

create or replace function @function:delete@(id bigint)
returns boolean
language plpgsql
@fragment:settings@
as $function$
begin
    delete from @queue@
    where msg_id = id;
    return found;
end
$function$;

create or replace function @function:delete_batch@(ids bigint[])
returns setof bigint
language plpgsql
@fragment:settings@
as $function$
begin
    return query
        delete from @queue@
        where msg_id = any (ids)
        returning msg_id;
end
$function$;

create or replace function @function:archive@(ids bigint[])
returns setof bigint
language plpgsql
@fragment:settings@
as $function$
begin
    return query
        with removed as (
            delete from @queue@
            where msg_id = any (ids)
            returning msg_id, read_ct, enqueued_at, last_read_at, vt, message, headers
        )
        insert into @archive@ (msg_id, read_ct, enqueued_at, last_read_at, vt, message, headers)
        select msg_id, read_ct, enqueued_at, last_read_at, vt, message, headers
        from removed
        returning msg_id;
end
$function$;

create or replace function @function:set_vt@(ids bigint[], visible_at timestamptz)
returns table (
    msg_id bigint,
    read_ct integer,
    enqueued_at timestamptz,
    last_read_at timestamptz,
    vt timestamptz,
    message jsonb,
    headers jsonb
)
language plpgsql
@fragment:settings@
as $function$
#variable_conflict use_column
declare
    new_head bigint;
    new_due bigint;
    new_sweep constant bigint := null;
begin
    return query
        with changed as (
            update @queue@ as q
            set vt = visible_at
            where q.msg_id = any (ids)
            returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        )
        select *
        from changed as c
        order by c.msg_id;

    -- Visible at once: the hints must not hide it.
    if visible_at <= clock_timestamp() then
        select min(q.msg_id)
        into new_head
        from @queue@ as q
        where q.msg_id = any (ids)
            and q.vt <= q.enqueued_at;
        new_head := least(new_head, pg_sequence_last_value(@literal:head@));
        new_due := least(
            greatest(date_part('epoch', visible_at), 0) * 1000000 - 1,
            pg_sequence_last_value(@literal:due@)
        );
        @fragment:remember@
    end if;
end
$function$;

-- Moves the hints up to what a read has just found: no ready message was free below "lowest". The margin is for messages
-- whose ids are lower and whose transactions commit or roll back a little later; what is later still waits for a sweep.
create or replace function @function:advance@(lowest bigint, margin bigint, moment timestamptz)
returns void
language plpgsql
@fragment:settings@
as $function$
declare
    earliest timestamptz;
    new_head bigint;
    new_due bigint;
    new_sweep constant bigint := null;
begin
    select d.vt
    into earliest
    from @queue@ as d
    where d.vt > d.enqueued_at
        and d.vt >= to_timestamp(coalesce(pg_sequence_last_value(@literal:due@), 0) * 0.000001::double precision)
        and d.vt <= moment
    order by d.vt
    limit 1;
    new_head := greatest(lowest - greatest(margin, 128), pg_sequence_last_value(@literal:head@));
    new_due := date_part('epoch', coalesce(earliest, moment)) * 1000000 - 10000;
    @fragment:remember@
end
$function$;

-- Looks for messages that the hints hide, and lowers the hints to them. It is due once a second, and later where it took
-- long, so that it never takes more than a twentieth of the time.
create or replace function @function:sweep@(moment timestamptz)
returns void
language plpgsql
@fragment:settings@
as $function$
declare
    earliest timestamptz;
    new_head bigint;
    new_due bigint;
    new_sweep bigint := (date_part('epoch', moment) + 2) * 1000;
begin
    -- First, so that others leave it to this session.
    @fragment:remember@
    -- A message that a running transaction holds is not hidden: it is taken.
    select m.msg_id
    into new_head
    from @queue@ as m
    where m.vt <= m.enqueued_at
        and m.msg_id < pg_sequence_last_value(@literal:head@)
        and m.vt <= moment
    order by m.msg_id
    limit 1
    for update skip locked;
    select d.vt
    into earliest
    from @queue@ as d
    where d.vt > d.enqueued_at
        and d.vt <= moment
    order by d.vt
    limit 1;
    new_due := date_part('epoch', greatest(coalesce(earliest, moment), 'epoch')) * 1000000 - 10000;
    new_sweep := 1000 * (
        date_part('epoch', clock_timestamp())
        + greatest(1, 20 * date_part('epoch', clock_timestamp() - moment))
    );
    @fragment:remember@
end
$function$;

create or replace function @function:hint@(new_head bigint, new_due bigint, new_sweep bigint)
returns void
language plpgsql
as $function$
begin
    if new_head is not null then
        perform setval(@literal:head@, greatest(new_head, 1));
    end if;
    if new_due is not null then
        perform setval(@literal:due@, greatest(new_due, 1));
    end if;
    if new_sweep is not null then
        perform setval(@literal:sweep@, new_sweep);
    end if;
end
$function$;

-- SECURITY DEFINER, so that whoever may read the queue can keep its hints without a grant on the sequences. The caller
-- is the session's role: one that may not read the queue changes nothing.
create or replace function @function:owner_hint@(new_head bigint, new_due bigint, new_sweep bigint)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    if has_table_privilege(
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        @literal:queue@,
        'UPDATE'
    ) then
        perform @function:hint@(new_head, new_due, new_sweep);
    end if;
end
$function$;

-- @section notify_memory
-- When an insert last notified (microseconds since 1970), and the transaction that did. Sequences, since no sender may
-- wait for another's transaction: nothing is locked, and no row versions pile up.
create @unlogged@ sequence if not exists @sequence:notified@;
create @unlogged@ sequence if not exists @sequence:notifier@;
alter sequence @sequence:notified@ owner to @owner@;
alter sequence @sequence:notifier@ owner to @owner@;
alter sequence @sequence:notified@ owned by @queue@.vt;
alter sequence @sequence:notifier@ owned by @queue@.vt;
grant select on @sequence:notified@ to public;

-- @section notify
select setval(@literal:notified@, 1, false), setval(@literal:notifier@, 1, false);

-- SECURITY DEFINER, so that whoever may insert needs no privilege on the sequences, with which it could silence others.
create or replace function @function:notify@()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    moment constant bigint := date_part('epoch', clock_timestamp()) * 1000000;
    throttle constant bigint := @throttle@ * 1000::bigint;
    notifier bigint;
    current_id bigint;
    ahead bigint;
begin
    if tg_relid <> @literal:queue@::regclass then
        return null;
    end if;

    -- Only a notification that has been committed may stand for this one: another might never be sent. The time is read
    -- before the transaction and written after it, so that the transaction is never older than the time.
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

    -- The transaction that counts may be a savepoint's, which rolls back by itself: the row just inserted has its id, as
    -- 32 bits. A session that has never drawn an id for a message, as in a restore, leaves no trace.
    current_id := pg_current_xact_id()::text::bigint;
    begin
        select (q.xmin::text::bigint - current_id) & 4294967295
        into ahead
        from @queue@ as q
        where q.msg_id = currval(pg_get_serial_sequence(@literal:queue@, 'msg_id'));
    exception
        when object_not_in_prerequisite_state then
            return null;
    end;
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
