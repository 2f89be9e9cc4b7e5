-- The templates of one queue, here and in queue_read.sql, queue_groups.sql and queue_notify.sql. pgmq.create fills them
-- in and runs them; nothing here is run as it stands. Sections are run, fragments are parts of them.
--
--   @queue@, @archive@      the tables, qualified and quoted
--   @function:read@         the queue's own function of that name, qualified and quoted: pgmq."q_orders$read"
--   @sequence:head@         the queue's own sequence, likewise
--   @literal:head@          the same as a string literal
--   @owner@                 the owner of the queue's table, quoted
--   @persistence@           "unlogged" or nothing, for the table
--   @queue_key@, @queue_partitioning@, @archive_key@, @archive_partitioning@
--                           the columns of the primary keys, and "partition by range (...)" or nothing
--   @identity@              "always"; in a partitioned queue "by default", since from PostgreSQL 17 on partitions
--                           inherit it, and pg_partman could not move rows from one to the other
--   @template@, @archive_template@
--                           where pg_partman finds what new partitions are to have, see docs/partitions.md
--   @unlogged@              "unlogged" where the server knows unlogged sequences (PostgreSQL 15), else nothing
--   @row_id@, @row_type@    what a row is found by again in the same transaction: its ctid, which is the quickest; in a
--                           partitioned queue its msg_id, since a ctid is unique only within one partition
--   @group:m@               the message group of a row of m, as a number
--   @fragment:claim@        the fragment of that name from these files, so that functions that differ only in their end
--                           share the rest without paying for a call
--
--   @literal:channel@       where notifications are on, the channel as a string literal
--   @throttle@              and the least time between two of them, in milliseconds
--
-- "$" is refused in queue names, so no table, sequence or function of another queue can have one of these names.

-- @section tables
create @persistence@ table if not exists @queue@ (
    msg_id bigint generated @identity@ as identity,
    read_ct integer not null default 0,
    enqueued_at timestamptz not null default now(),
    last_read_at timestamptz,
    vt timestamptz not null,
    message jsonb,
    headers jsonb,
    primary key (@queue_key@)
)
@queue_partitioning@;

-- @section archive
create table if not exists @archive@ (
    msg_id bigint not null,
    read_ct integer not null default 0,
    enqueued_at timestamptz not null default now(),
    last_read_at timestamptz,
    archived_at timestamptz not null default now(),
    vt timestamptz not null,
    message jsonb,
    headers jsonb,
    primary key (@archive_key@)
)
@archive_partitioning@;

create index if not exists @index:archived@ on @archive@ (archived_at);

-- Each id is ready once: nothing to deduplicate, which would be tried with every page that is full.
-- @section indexes
create index if not exists @index:ready@ on @queue@ (msg_id)
with (deduplicate_items = off)
where vt <= enqueued_at;

create index if not exists @index:parked@ on @queue@ (vt) where vt > enqueued_at;

-- @section fifo
create index if not exists @index:fifo@ on @queue@ ((@group@), msg_id);

-- Every message is written twice in its page (sent, read) and then deleted: room for the second row, and a vacuum
-- that comes by the number of dead rows rather than by their share of a table that is usually empty.
-- @fragment storage
fillfactor = 70,
autovacuum_vacuum_threshold = 1000,
autovacuum_vacuum_scale_factor = 0.05,
autovacuum_vacuum_cost_delay = 0

-- @section settings
alter table @queue@ set (
    @fragment:storage@
);

-- A partitioned table has no storage of its own: its partitions have.
-- @section partition_settings
do $do$
declare
    partition regclass;
begin
    for partition in
        select relid
        from pg_partition_tree(@literal:queue@)
        where isleaf
    loop
        execute format(
            $alter$
                alter table %s set (
                    @fragment:storage@
                )
            $alter$,
            partition
        );
    end loop;
end
$do$;

-- @section template
create table if not exists @template@ (like @queue@);

alter table @template@ set (
    @fragment:storage@
);

-- @section archive_template
create table if not exists @archive_template@ (like @archive@);

-- @section hints
create @unlogged@ sequence if not exists @sequence:head@;
create @unlogged@ sequence if not exists @sequence:due@;
create @unlogged@ sequence if not exists @sequence:sweep@;
create @unlogged@ sequence if not exists @sequence:spread@;
create @unlogged@ sequence if not exists @sequence:walk@;
create @unlogged@ sequence if not exists @sequence:walked@;
alter sequence @sequence:head@ owner to @owner@;
alter sequence @sequence:due@ owner to @owner@;
alter sequence @sequence:sweep@ owner to @owner@;
alter sequence @sequence:spread@ owner to @owner@;
alter sequence @sequence:walk@ owner to @owner@;
alter sequence @sequence:walked@ owner to @owner@;
alter sequence @sequence:head@ owned by @queue@.vt;
alter sequence @sequence:due@ owned by @queue@.vt;
alter sequence @sequence:sweep@ owned by @queue@.vt;
alter sequence @sequence:spread@ owned by @queue@.vt;
alter sequence @sequence:walk@ owned by @queue@.vt;
alter sequence @sequence:walked@ owned by @queue@.vt;
grant select
on @sequence:head@, @sequence:due@, @sequence:sweep@, @sequence:spread@, @sequence:walk@, @sequence:walked@
to public;

-- A dump of PostgreSQL 14 brings logged ones, those of the notifications too.
do $do$
declare
    logged regclass;
begin
    for logged in
        select c.oid
        from unnest(
            array[
                @literal:head@, @literal:due@, @literal:sweep@, @literal:spread@, @literal:walk@, @literal:walked@,
                @literal:notified@, @literal:notifier@
            ]
        ) as own (name)
        join pg_class as c on c.oid = to_regclass(own.name)
        where c.relpersistence = 'p'
            and '@unlogged@' = 'unlogged'
    loop
        execute format('alter sequence %s set @unlogged@', logged);
    end loop;
end
$do$;

-- @section privileges
grant select on @queue@, @archive@ to pg_monitor;
do $do$
begin
    execute format('grant select on sequence %s to pg_monitor', pg_get_serial_sequence(@literal:queue@, 'msg_id'));
end
$do$;

-- Plans are kept, often from when the table was empty: they must be index scans then too. The estimates that follow
-- from that must not wake the JIT compiler, and the plan must be the same whatever the parameters.
-- @fragment settings
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan

-- @fragment returns_messages
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

-- @fragment returning_message
returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers

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

-- The commonest send, without headers and delay: what is not passed through two calls costs nothing.
create or replace function @function:send_now@(content jsonb)
returns bigint
language plpgsql
as $function$
declare
    id bigint;
begin
    insert into @queue@ (vt, message)
    values (now(), content)
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
        select visible_at, unnest(contents), unnest(properties)
        returning msg_id;
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
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    new_head bigint;
    new_due bigint;
    new_walk bigint;
begin
    return query
        with changed as (
            update @queue@ as q
            set vt = visible_at
            where q.msg_id = any (ids)
            @fragment:returning_message@
        )
        select *
        from changed as c
        order by c.msg_id;

    -- Visible at once: the hints must not hide it.
    if visible_at <= clock_timestamp() then
        select min(q.msg_id) filter (where q.vt <= q.enqueued_at), min(q.msg_id)
        into new_head, new_walk
        from @queue@ as q
        where q.msg_id = any (ids);
        -- A hint that was never written hides nothing: it must not begin here.
        new_head := least(new_head, coalesce(pg_sequence_last_value(@literal:head@), 0));
        new_due := least(
            greatest(date_part('epoch', visible_at), 0) * 1000000 - 1,
            coalesce(pg_sequence_last_value(@literal:due@), 0)
        );
        perform @function:keep@(
            new_head => new_head,
            new_due => new_due,
            new_walk => case
                when new_walk < pg_sequence_last_value(@literal:walk@)
                    and date_part('epoch', visible_at) * 1000000 < pg_sequence_last_value(@literal:walked@)
                    then new_walk
            end
        );
    end if;
end
$function$;
