-- What there is, and how full it is.

create function pgmq.list_queues()
returns setof pgmq.queue_record
language sql
as $function$
    select queue_name, is_partitioned, is_unlogged, created_at
    from pgmq.meta
$function$;
comment on function pgmq.list_queues() is 'Lists the queues, one row each. Privileges: SELECT on pgmq.meta.';

create function pgmq.metrics(queue_name text)
returns pgmq.metrics_result
language plpgsql
as $function$
#variable_conflict use_column
declare
    table_name constant text := pgmq.format_table_name(queue_name, 'q');
    queue_table constant text := 'pgmq.' || quote_ident(table_name);
    result pgmq.metrics_result;
begin
    if not pgmq._table_exists(table_name) then
        raise exception 'pgmq: queue % does not exist', quote_ident(queue_name)
            using errcode = 'undefined_table',
                hint = format('Create it first: select pgmq.create(%L);', queue_name);
    end if;
    execute format(
        $query$
            select $1,
                count(*),
                extract(epoch from clock_timestamp() - max(enqueued_at))::integer,
                extract(epoch from clock_timestamp() - min(enqueued_at))::integer,
                (select case when is_called then last_value else 0 end from %s),
                clock_timestamp(),
                count(*) filter (where vt <= clock_timestamp()),
                (
                    select sum(greatest(d.reltuples, 0))::bigint
                    from pg_partitioned_table as q
                    join pg_partitioned_table as p
                        on p.partrelid in (
                            select relid::oid
                            from pg_partition_tree(to_regclass($2))
                            union all
                            select relid::oid
                            from pg_partition_tree(to_regclass($3))
                        )
                    join pg_class as d
                        on d.oid = p.partdefid
                    where q.partrelid = to_regclass($2)::oid
                )
            from %s
        $query$,
        pg_get_serial_sequence(queue_table, 'msg_id'),
        queue_table
    )
    into result
    using queue_name, queue_table, 'pgmq.' || quote_ident(pgmq.format_table_name(queue_name, 'a'));
    return result;
end
$function$;
comment on function pgmq.metrics(text) is
'Returns the figures of a queue: messages, and how many of them are visible; age of the newest and the oldest in
seconds; messages ever sent; the time of the scrape; for a partitioned queue the planner''s estimate of rows in its
default partitions. It counts the rows of the table. Errors: 42P01 no such queue.
Privileges: SELECT on the queue table and on its sequence pgmq.q_<queue>_msg_id_seq, as pg_monitor has.';

create function pgmq.metrics_all()
returns setof pgmq.metrics_result
language sql
as $function$
    select m.*
    from pgmq.meta as q
    cross join lateral pgmq.metrics(q.queue_name) as m
$function$;
comment on function pgmq.metrics_all() is
'Returns the figures of every queue, one row each; see metrics. Privileges: as metrics, and SELECT on pgmq.meta.';
