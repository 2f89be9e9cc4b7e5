-- What there is, and how full it is.

create function pgmq.list_queues()
returns setof pgmq.queue_record
language sql
as $function$
    select queue_name, is_partitioned, is_unlogged, created_at
    from pgmq.meta
$function$;
comment on function pgmq.list_queues() is 'Lists the queues, one row per queue. Privileges: SELECT on pgmq.meta.';

-- An age beyond the range of integer is the greatest or the least one; an infinite one is unknown.
create function pgmq._age(enqueued_at timestamptz, moment timestamptz)
returns integer
immutable
language sql
as $function$
    select case
        when isfinite(enqueued_at) then
            least(
                greatest(extract(epoch from moment - enqueued_at), -2147483648::numeric),
                2147483647::numeric
            )::integer
    end
$function$;
comment on function pgmq._age(timestamptz, timestamptz) is 'Internal: an age in seconds as metrics gives it.';

-- What metrics relies on: it would run the cast or the operator of another type as its caller.
create function pgmq._is_queue_table(queue_table oid)
returns boolean
stable
language sql
as $function$
    select pg_catalog.count(*) = 2::bigint
    from pg_attribute as a
    where a.attrelid = queue_table
        and a.attname in ('enqueued_at', 'vt')
        and a.atttypid = 'timestamptz'::regtype::oid
        and not a.attisdropped
$function$;
comment on function pgmq._is_queue_table(oid) is
'Internal: whether the columns of a table that metrics reads have the types of a queue.';

create function pgmq.metrics(queue_name text)
returns pgmq.metrics_result
language plpgsql
as $function$
declare
    moment constant timestamptz := clock_timestamp();
    -- Whatever collation the name comes with, it is looked up in the database's.
    table_name constant text := pgmq._sought_table(queue_name collate "default");
    archive_name constant text := pgmq.format_table_name(queue_name collate "default", 'a'::text);
    queue_table oid;
    is_unlogged boolean;
    id_sequence text;
    newest timestamptz;
    oldest timestamptz;
    result pgmq.metrics_result;
begin
    select c.oid, c.relpersistence = 'u'
    into queue_table, is_unlogged
    from pg_class as c
    where c.relname = table_name collate "C"
        and c.relnamespace = 'pgmq'::regnamespace::oid
        and c.relkind in ('r', 'p');
    if queue_table is null then
        raise exception 'pgmq: queue % does not exist', quote_ident(queue_name)
            using errcode = 'undefined_table',
                hint = pg_catalog.format('Create it first: select pgmq.create(%L);', queue_name);
    elsif not pgmq._is_queue_table(queue_table) then
        raise exception 'pgmq: pgmq.% is not the table of a queue', quote_ident(table_name)
            using errcode = 'datatype_mismatch',
                detail = 'Its columns enqueued_at and vt must be there, as timestamp with time zone.',
                hint = 'Rename the table, or give its columns the types that pgmq.create gives them.';
    end if;
    result.queue_name := queue_name;
    result.scrape_time := moment;
    -- A standby has nothing of an unlogged table.
    if is_unlogged and pg_is_in_recovery() then
        return result;
    end if;

    execute pg_catalog.format(
        $query$
            select count(*), count(*) filter (where vt <= $1), max(enqueued_at), min(enqueued_at)
            from pgmq.%I
        $query$,
        table_name
    )
    into result.queue_length, result.queue_visible_length, newest, oldest
    using moment;
    result.newest_msg_age_sec := pgmq._age(newest, moment);
    result.oldest_msg_age_sec := pgmq._age(oldest, moment);

    id_sequence := pg_get_serial_sequence('pgmq.' || quote_ident(table_name), 'msg_id'::text);
    if id_sequence is not null then
        execute 'select case when is_called then last_value else 0::bigint end from ' || id_sequence
            into result.total_messages;
    end if;

    select sum(greatest(d.reltuples, 0::real))::bigint
    into result.default_partition_length
    from pg_partitioned_table as q
    join pg_partitioned_table as p
        on p.partrelid in (
            select t.relid::oid
            from pg_partition_tree(queue_table::regclass) as t
            union all
            select t.relid::oid
            from pg_partition_tree(to_regclass('pgmq.'::text || quote_ident(archive_name))) as t
        )
    join pg_class as d
        on d.oid = p.partdefid
    where q.partrelid = queue_table;
    return result;
end
$function$;
comment on function pgmq.metrics(text) is
'Returns the figures of a queue: messages, and how many of them are visible; age of the newest and the oldest in
seconds; messages ever sent; the time of the scrape; for a partitioned queue the planner''s estimate of rows in its
default partitions. It counts the rows of the table that row security lets the caller see. On a standby the figures of
an unlogged queue are NULL. Errors: 42P01 no such queue, 42804 a table with columns of other types.
Privileges: SELECT on the queue table and on its sequence pgmq.q_<queue>_msg_id_seq, as pg_monitor has.';

create function pgmq.metrics_all()
returns setof pgmq.metrics_result
language sql
as $function$
    select m.*
    from (
        select l.queue_name::text as queue_name
        from pgmq.meta as l
    ) as q
    join pg_class as c
        on c.relname = pgmq._identifier('q_' || q.queue_name, 63) collate "C"
        and c.relnamespace = 'pgmq'::regnamespace::oid
        and c.relkind in ('r', 'p')
    cross join lateral pgmq.metrics(q.queue_name) as m
    where pgmq._is_queue_table(c.oid)
$function$;
comment on function pgmq.metrics_all() is
'Returns the figures of every queue, one row per queue; see metrics. A row of pgmq.meta that has no table of a queue is
left out. Privileges: as metrics, and SELECT on pgmq.meta.';
