-- Message groups: FIFO within a group, the header x-pgmq-group. Messages without it are one group.

-- A queue with the FIFO index has a function of its own that reads its groups, compiled from queue_groups.sql. It
-- counts only if it belongs to the owner of the table: while there is no index the name is free, and any role that may
-- create functions in the schema could take it.
create function pgmq._grouped(queue_name text)
returns text
stable
language plpgsql
as $function$
declare
    -- All names but a few are these; for the others a second search does no harm.
    queue_table text := lower(('q_' || queue_name) collate "default");
    stem text := queue_table;
    queue oid;
    is_compiled boolean;
begin
    for attempt in 1..2 loop
        select q.oid, p.oid is not null
        into queue, is_compiled
        from pg_class as q
        left join pg_proc as p
            on p.proname = (stem || '$grouped') collate "C"
            and p.proargtypes = '23 23 25'::oidvector
            and p.pronamespace = q.relnamespace
            and p.proowner = q.relowner
        where q.relname = queue_table collate "C"
            and q.relnamespace = 'pgmq'::regnamespace::oid
            and q.relkind in ('r', 'p');
        if is_compiled and strpos(queue_name, '$') = 0 then
            return 'pgmq.' || quote_ident(stem || '$grouped') || '(';
        end if;
        queue_table := pgmq.format_table_name(queue_name, 'q');
        stem := pgmq._stem(queue_name);
    end loop;
    if queue is null then
        raise exception 'pgmq: queue % does not exist', quote_ident(queue_name)
            using errcode = 'undefined_table',
                hint = pg_catalog.format('Create it first: select pgmq.create(%L);', queue_name);
    end if;
    return 'pgmq._read_grouped_scanned(' || queue::text || '::oid::regclass, ';
end
$function$;
comment on function pgmq._grouped(text) is
'Internal: the function that reads the groups of this queue, up to its last three arguments, or an error that says why
there is none.';

-- Without the FIFO index every read looks at the whole table, so what the statements cost to plan does not matter. It
-- gives what the compiled function gives, for the same reasons: see queue_groups.sql. All is found in the snapshot of
-- the one pass over the table.
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
    candidate record;
    seen bigint;
    follower_ids bigint[] := '{}';
    follower_heads bigint[] := '{}';
    followers refcursor;
    follower record;
    ended bigint[] := '{}';
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

    -- Of each group the messages before the first invisible one, the groups in the order of their heads. A head is
    -- locked when its group is fetched.
    open candidates for execute
        $query$
            select g.ids, l.msg_id as head
            from (
                select pg_catalog.array_agg(m.msg_id order by m.msg_id) as ids
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
                offset 0
            ) as g
            left join lateral (
                select m.msg_id
                from $query$ || queue_table || $query$ as m
                where m.msg_id = g.ids[1]
                    and m.vt <= $1
                for update skip locked
            ) as l on true
        $query$
        using moment, case mode when 'head' then 1 else wanted end;
    loop
        -- As many groups as have what is missing, if no other transaction holds any of it.
        seen := 0;
        while seen < missing loop
            fetch candidates into candidate;
            is_last := not found;
            exit when is_last;
            continue when candidate.head is null;
            claimed := pg_catalog.array_append(claimed, candidate.head);
            seen := seen + case mode when 'fill' then pg_catalog.cardinality(candidate.ids) else 1 end;
            follower_ids := pg_catalog.array_cat(follower_ids, candidate.ids[2:]);
            follower_heads := pg_catalog.array_cat(
                follower_heads,
                pg_catalog.array_fill(candidate.head, array[pg_catalog.cardinality(candidate.ids) - 1])
            );
        end loop;
        missing := wanted - pg_catalog.cardinality(claimed);
        -- What follows the heads: a group at a time, or, since all groups have one by now, dealt in turn. The first
        -- that cannot be locked ends its group.
        if missing > 0 and pg_catalog.cardinality(follower_ids) > 0 and mode <> 'head' then
            open followers for execute
                $query$
                    select f.head, f.msg_id, l.is_locked
                    from (
                        select f.head, f.msg_id
                        from (
                            select f.head,
                                f.msg_id,
                                row_number() over (partition by f.head order by f.msg_id) as turn
                            from unnest($1, $2) as f (head, msg_id)
                        ) as f
                        order by case when $3 then f.turn else f.head end, f.head, f.turn
                        offset 0
                    ) as f
                    left join lateral (
                        select true as is_locked
                        from $query$ || queue_table || $query$ as m
                        where m.msg_id = f.msg_id
                            and m.vt <= $4
                        for update skip locked
                    ) as l on true
                $query$
                using follower_heads, follower_ids, mode = 'deal', moment;
            while missing > 0 loop
                fetch followers into follower;
                exit when not found;
                if follower.is_locked is null then
                    ended := pg_catalog.array_append(ended, follower.head);
                elsif follower.head <> all (ended) then
                    claimed := pg_catalog.array_append(claimed, follower.msg_id);
                    missing := missing - 1;
                end if;
            end loop;
            close followers;
        end if;
        exit when missing = 0 or is_last;
        follower_ids := '{}';
        follower_heads := '{}';
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
        using coalesce(vt, pgmq._required('vt'::text)::integer), qty;
end
$function$;
comment on function pgmq.read_grouped(text, integer, integer) is
'Takes up to qty visible messages for vt seconds: from the group with the oldest message first, then from the next.
Groups (the header x-pgmq-group) come in the order of their oldest messages. A message that is invisible, or that
another transaction holds, hides all later ones of its group: so the messages of a group are handed out in order, to one
reader at a time. A NULL qty means all. create_fifo_index makes it fast.
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
        using coalesce(vt, pgmq._required('vt'::text)::integer), qty;
end
$function$;
comment on function pgmq.read_grouped_rr(text, integer, integer) is
'Takes up to qty visible messages for vt seconds: one of each group in turn, and returns them in that order.
Groups (the header x-pgmq-group) come in the order of their oldest messages. A message that is invisible, or that
another transaction holds, hides all later ones of its group: so the messages of a group are handed out in order, to one
reader at a time. A NULL qty means all. create_fifo_index makes it fast.
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
        using coalesce(vt, pgmq._required('vt'::text)::integer), qty;
end
$function$;
comment on function pgmq.read_grouped_head(text, integer, integer) is
'Takes one message, the oldest, of each of up to qty groups, for vt seconds.
Groups (the header x-pgmq-group) come in the order of their oldest messages. A message that is invisible, or that
another transaction holds, hides all later ones of its group: so the messages of a group are handed out in order, to one
reader at a time. A NULL qty means all. create_fifo_index makes it fast.
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
