-- Message groups: FIFO within a group, the header x-pgmq-group. Messages without it are one group.

-- The function that reads the groups of a queue with the FIFO index is its own, compiled from queue_groups.sql. It counts
-- only if it belongs to the owner of the table: the name is free while there is no index, and whoever may create
-- functions in the schema could take it.
create function pgmq._grouped(queue_name text)
returns text
stable
language plpgsql
as $function$
declare
    queue_table constant text := pgmq.format_table_name(queue_name, 'q');
    compiled constant text := 'pgmq.' || quote_ident(pgmq._stem(queue_name) || '$grouped');
    called text;
begin
    select case
        when p.oid is null then 'pgmq._read_grouped_scanned(' || q.oid::text || '::oid::regclass, '
        else compiled || '('
    end
    into called
    from pg_class as q
    left join pg_proc as p
        on p.oid = to_regprocedure(compiled || '(integer, integer, pg_catalog.text)')::oid
        and p.proowner = q.relowner
    where q.relname = queue_table collate "C"
        and q.relnamespace = 'pgmq'::regnamespace::oid
        and q.relkind in ('r', 'p');
    if called is null then
        raise exception 'pgmq: queue % does not exist', quote_ident(queue_name)
            using errcode = 'undefined_table',
                hint = format('Create it first: select pgmq.create(%L);', queue_name);
    end if;
    return called;
end
$function$;
comment on function pgmq._grouped(text) is
'Internal: the function that reads the groups of this queue, up to its last three arguments, or an error that says why
there is none.';

-- Without the FIFO index every read looks at the whole table, so what the statements cost to plan does not matter. It
-- gives what the compiled function gives, for the same reasons: see queue_groups.sql. The snapshot is that of the one pass
-- over the table.
create function pgmq._read_grouped_scanned(queue regclass, seconds integer, quantity integer, mode text)
returns setof pgmq.message_record
language plpgsql
set jit = off
as $function$
declare
    queue_table constant text := queue::text;
    moment constant timestamptz := clock_timestamp();
    wanted constant bigint := coalesce(quantity, 9223372036854775807);
    missing bigint := wanted;
    is_last boolean := false;
    candidates refcursor;
    candidate bigint[];
    chunk_size bigint;
    chunk_heads bigint[];
    rest_ids bigint[] := '{}';
    rest_heads bigint[] := '{}';
    heads bigint[];
    rest bigint[];
    -- The ids in the order in which they were dealt.
    claimed bigint[] := '{}';
begin
    if quantity < 0 then
        raise exception 'pgmq: qty must not be negative'
            using errcode = 'invalid_row_count_in_limit_clause',
                hint = 'NULL means all.';
    end if;
    if wanted = 0 then
        return;
    end if;

    -- Of each group the messages before the first invisible one, the groups in the order of their heads.
    open candidates for execute
        $query$
            select pg_catalog.array_agg(m.msg_id order by m.msg_id)
            from (
                select m.message_group,
                    m.msg_id,
                    row_number() over in_group as turn,
                    bool_and(m.vt <= $1) over in_group as is_visible
                from (
                    select m.msg_id,
                        m.vt,
                        coalesce(
                            hashtextextended(m.headers ->> 'x-pgmq-group'::text, 0::bigint),
                            0::bigint
                        ) as message_group
                    from $query$ || queue_table || $query$ as m
                ) as m
                window in_group as (partition by m.message_group order by m.msg_id rows unbounded preceding)
            ) as m
            where m.is_visible
                and m.turn <= $2
            group by m.message_group
            order by min(m.msg_id)
        $query$
        using moment, case mode when 'head' then 1 else wanted end;
    loop
        -- As many groups as have what is missing, if no other transaction holds any of it. Their heads are locked first:
        -- a group whose head another has is left alone.
        chunk_size := 0;
        chunk_heads := '{}';
        while chunk_size < missing loop
            fetch candidates into candidate;
            is_last := not found;
            exit when is_last;
            chunk_heads := pg_catalog.array_append(chunk_heads, candidate[1]);
            chunk_size := chunk_size + case mode when 'fill' then pg_catalog.cardinality(candidate) else 1 end;
            rest_ids := pg_catalog.array_cat(rest_ids, candidate[2:]);
            rest_heads := pg_catalog.array_cat(
                rest_heads,
                array_fill(candidate[1], array[pg_catalog.cardinality(candidate) - 1])
            );
        end loop;
        execute
            $query$
                select pg_catalog.array_agg(l.msg_id order by l.msg_id)
                from (
                    select m.msg_id
                    from $query$ || queue_table || $query$ as m
                    where m.msg_id = any ($1)
                        and m.vt <= $2
                    for update skip locked
                ) as l
            $query$
            into heads
            using chunk_heads, moment;
        claimed := pg_catalog.array_cat(claimed, heads);
        missing := wanted - pg_catalog.cardinality(claimed);
        -- What follows the heads: of a group what comes before the first that cannot be locked.
        if missing > 0 and (mode = 'fill' or mode = 'deal' and is_last) then
            execute
                $query$
                    select pg_catalog.array_agg(c.msg_id order by c.place)
                    from (
                        select p.msg_id,
                            p.place,
                            bool_and(l.msg_id is not null) over (partition by p.head order by p.msg_id) as is_free
                        from (
                            select r.msg_id,
                                r.head,
                                row_number() over (
                                    order by case when $4 then r.turn else 0::bigint end, r.head, r.msg_id
                                ) as place
                            from (
                                select r.msg_id,
                                    r.head,
                                    row_number() over (partition by r.head order by r.msg_id) as turn
                                from unnest($1, $2) as r (msg_id, head)
                                where r.head = any ($3)
                            ) as r
                            order by place
                            limit $5
                        ) as p
                        left join lateral (
                            select m.msg_id
                            from $query$ || queue_table || $query$ as m
                            where m.msg_id = p.msg_id
                                and m.vt <= $6
                            for update skip locked
                        ) as l on true
                    ) as c
                    where c.is_free
                $query$
                into rest
                using rest_ids, rest_heads, claimed, mode = 'deal', missing, moment;
            claimed := pg_catalog.array_cat(claimed, rest);
            missing := wanted - pg_catalog.cardinality(claimed);
            rest_ids := '{}';
            rest_heads := '{}';
        end if;
        exit when missing = 0 or is_last;
    end loop;
    close candidates;

    return query execute
        $query$
            with changed as (
                update $query$ || queue_table || $query$ as q
                set vt = $2,
                    read_ct = least(q.read_ct, 2147483646) + 1,
                    last_read_at = $3
                where q.msg_id = any ($1)
                returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
            )
            select *
            from changed as c
            order by case when $4 then pg_catalog.array_position($1, c.msg_id) end, c.msg_id
        $query$
        using claimed, moment + seconds::double precision * interval '1 second', moment, mode = 'deal';
end
$function$;
comment on function pgmq._read_grouped_scanned(regclass, integer, integer, text) is
'Internal: reads the groups of a queue that has no FIFO index. The mode says what is taken besides the heads of groups:
fill, what follows in the group; deal, the second messages of all groups, the third ones, and so on; head, nothing.';

create function pgmq.read_grouped(queue_name text, vt integer, qty integer)
returns setof pgmq.message_record
language plpgsql
as $function$
begin
    return query execute 'select * from ' || pgmq._grouped(queue_name) || '$1, $2, ''fill'')'
        using coalesce(vt, pgmq._required('vt', vt)), qty;
end
$function$;
comment on function pgmq.read_grouped(text, integer, integer) is
'Takes up to qty visible messages for vt seconds: from the group with the oldest message first, then from the next.
Groups (the header x-pgmq-group) come in the order of their oldest messages. A message that is invisible, or that another
transaction holds, hides all later ones of its group: so messages of a group are handed out in order, to one reader at a
time. A NULL qty means all. create_fifo_index makes it fast.
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
    return query execute 'select * from ' || pgmq._grouped(queue_name) || '$1, $2, ''deal'')'
        using coalesce(vt, pgmq._required('vt', vt)), qty;
end
$function$;
comment on function pgmq.read_grouped_rr(text, integer, integer) is
'Takes up to qty visible messages for vt seconds: one of each group in turn, and returns them in that order.
Groups (the header x-pgmq-group) come in the order of their oldest messages. A message that is invisible, or that another
transaction holds, hides all later ones of its group: so messages of a group are handed out in order, to one reader at a
time. A NULL qty means all. create_fifo_index makes it fast.
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
    return query execute 'select * from ' || pgmq._grouped(queue_name) || '$1, $2, ''head'')'
        using coalesce(vt, pgmq._required('vt', vt)), qty;
end
$function$;
comment on function pgmq.read_grouped_head(text, integer, integer) is
'Takes one message, the oldest, of each of up to qty groups, for vt seconds.
Groups (the header x-pgmq-group) come in the order of their oldest messages. A message that is invisible, or that another
transaction holds, hides all later ones of its group: so messages of a group are handed out in order, to one reader at a
time. A NULL qty means all. create_fifo_index makes it fast.
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
