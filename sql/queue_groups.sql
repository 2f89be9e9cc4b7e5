-- Template of one queue that has the FIFO index, see queue.sql: the grouped reads. One without it has none of its own,
-- see pgmq._read_grouped_scanned in groups.sql.
--
-- A group gives its messages before the first one that is invisible or that another transaction holds. Why that holds
-- beside other transactions:
-- - The head is the first of its group in the snapshot in which it was found, and is then locked if it is still
--   visible. Every grouped read of a group begins with its head, so one reader at a time has the group, and a head that
--   was taken, hidden or deleted after the snapshot gives nothing.
-- - What follows the head is found in one snapshot, message by message without a gap, and locked in that order if it is
--   still visible. The first that cannot be locked ends the group, whatever was done to it (set_vt, delete, archive),
--   whether that was committed after the snapshot or is not yet. Where the messages of several groups are dealt in
--   turn, later ones of such a group may be locked and are not handed out; that keeps them from no grouped read, since
--   their head is held.
-- - In REPEATABLE READ a message that was changed since the transaction began is a serialization failure, as in any
--   UPDATE.
-- - Only a message that commits after the snapshot with an id below those found is not seen: see docs/groups.md.

-- Walks the visible messages by id, a chunk at a time. The first of a group is its head unless the index knows one
-- before it. Where much is visible of groups that give nothing, goes from group to group in the index instead.
-- @fragment group_candidates
if walked = 0 then
    select pg_catalog.array_agg(d.msg_id),
        pg_catalog.array_agg(d.message_group),
        pg_catalog.array_agg(d.row_id),
        count(*) = 1000
    into due_ids, due_groups, due_rows, is_dense
    from (
        select d.msg_id, @group:d@ as message_group, d.@row_id@ as row_id
        @fragment:due_rows@
        limit 1000
    ) as d;
end if;
if walked = 0 or walked + size <= 2500 then
    if is_dense then
        select pg_catalog.array_agg(c.msg_id), pg_catalog.array_agg(c.message_group), pg_catalog.array_agg(c.row_id)
        into chunk_ids, chunk_groups, chunk_rows
        from (
            select m.msg_id, @group:m@ as message_group, m.@row_id@ as row_id
            from @queue@ as m
            where m.msg_id > place
                and m.vt <= moment
            order by m.msg_id
            limit size
        ) as c;
    else
        select pg_catalog.array_agg(c.msg_id), pg_catalog.array_agg(c.message_group), pg_catalog.array_agg(c.row_id)
        into chunk_ids, chunk_groups, chunk_rows
        from (
            select m.msg_id, @group:m@ as message_group, m.@row_id@ as row_id
            from @queue@ as m
            where m.vt <= m.enqueued_at
                and m.msg_id > place
                and m.msg_id >= head
                and m.vt <= moment
            order by m.msg_id
            limit size
        ) as c;
        lowest := coalesce(lowest, chunk_ids[1]);
    end if;
    is_last := coalesce(pg_catalog.cardinality(chunk_ids), 0) < size;
    open candidates for
        -- OFFSET 0 keeps the question a subplan, put to one group after the other as far as needed.
        select f.message_group, f.msg_id, f.row_id
        from (
            select g.message_group, g.msg_id, g.row_id
            from (
                select distinct on (c.message_group) c.message_group, c.msg_id, c.row_id
                from (
                    select r.message_group, r.msg_id, r.row_id
                    from unnest(chunk_groups, chunk_ids, chunk_rows) as r (message_group, msg_id, row_id)
                    union all
                    select r.message_group, r.msg_id, r.row_id
                    from unnest(due_groups, due_ids, due_rows) as r (message_group, msg_id, row_id)
                ) as c
                where c.msg_id > place
                    and (is_last or c.msg_id <= chunk_ids[size])
                order by c.message_group, c.msg_id
            ) as g
            order by g.msg_id
            offset 0
        ) as f
        where not exists (
            select
            from @queue@ as m
            where @group:m@ = f.message_group
                and m.msg_id < f.msg_id
            offset 0
        );
    place := chunk_ids[size];
    walked := walked + size;
    size := 4 * size;
else
    is_last := true;
    open candidates for
        with recursive lead as (
            (
                select @group:m@ as message_group, m.msg_id, m.vt, m.@row_id@ as row_id
                from @queue@ as m
                order by @group:m@, m.msg_id
                limit 1
            )
            union all
            select n.message_group, n.msg_id, n.vt, n.row_id
            from lead as l
            cross join lateral (
                select @group:m@ as message_group, m.msg_id, m.vt, m.@row_id@ as row_id
                from @queue@ as m
                where @group:m@ > l.message_group
                order by @group:m@, m.msg_id
                limit 1
            ) as n
        )
        select l.message_group, l.msg_id, l.row_id
        from lead as l
        where l.vt <= moment
            and l.message_group <> all (groups)
        order by l.msg_id;
end if;

-- What is still there and visible of "p", locked.
-- @fragment group_lock
left join lateral (
    select m.@row_id@ as row_id
    from @queue@ as m
    where m.@row_id@ = p.row_id
        and m.vt <= moment
    for update skip locked
) as l on true

-- "mode" says what is taken besides the heads, which are locked in their order until there are "wanted" messages: with
-- "fill" what follows in the group, before the next group; with "deal" the second messages of all groups, then the
-- third ones, and so on; with "head" nothing.
-- @section fifo_functions
create or replace function @function:grouped@(seconds integer, quantity integer, mode text)
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    @fragment:hint_variables@
    wanted constant bigint := coalesce(quantity, 9223372036854775807);
    missing bigint := wanted;
    place bigint := -1;
    size bigint := least(greatest(4 * quantity::bigint, 100), 10000);
    walked bigint := 0;
    is_last boolean := false;
    is_dense boolean := false;
    chunk_ids bigint[];
    chunk_groups bigint[];
    chunk_rows @row_type@[];
    due_ids bigint[];
    due_groups bigint[];
    due_rows @row_type@[];
    lowest bigint;
    candidates refcursor;
    candidate record;
    locked_row @row_type@;
    followers refcursor;
    groups bigint[] := '{}';
    heads bigint[] := '{}';
    claimed @row_type@[] := '{}';
    dealt bigint[];
    ended bigint[] := '{}';
begin
    @fragment:check_quantity@
    @fragment:read_hints@
    <<search>>
    while missing > 0 and not is_last loop
        @fragment:group_candidates@
        loop
            fetch candidates into candidate;
            exit when not found;
            select m.@row_id@
            into locked_row
            from @queue@ as m
            where m.@row_id@ = candidate.row_id
                and m.vt <= moment
            for update skip locked;
            continue when not found;
            groups := pg_catalog.array_append(groups, candidate.message_group);
            heads := pg_catalog.array_append(heads, candidate.msg_id);
            claimed := pg_catalog.array_append(claimed, locked_row);
            missing := missing - 1;
            if mode = 'fill' and missing > 0 then
                open followers for
                    select l.row_id
                    from (
                        select m.@row_id@ as row_id
                        from @queue@ as m
                        where @group:m@ = candidate.message_group
                            and m.msg_id > candidate.msg_id
                        order by m.msg_id
                        limit missing
                    ) as p
                    @fragment:group_lock@;
                loop
                    fetch followers into locked_row;
                    exit when locked_row is null;
                    claimed := pg_catalog.array_append(claimed, locked_row);
                    missing := missing - 1;
                end loop;
                close followers;
            end if;
            exit search when missing = 0;
        end loop;
        close candidates;
    end loop;
    if random() * 32::float8 < pg_catalog.cardinality(claimed)::float8 then
        perform @function:advance@(moment, head, due, size, lowest);
    end if;
    -- All groups have one: the second messages, the third ones, ...
    if mode = 'deal' then
        dealt := heads;
        if missing > 0 and pg_catalog.cardinality(heads) > 0 then
            open followers for
                select p.seat, p.msg_id, l.row_id
                from (
                    select g.seat, n.msg_id, n.row_id
                    from unnest(groups, heads) with ordinality as g (message_group, msg_id, seat)
                    cross join lateral (
                        select f.msg_id,
                            f.row_id,
                            row_number() over (order by f.msg_id) as turn,
                            bool_and(f.vt <= moment) over (order by f.msg_id) as is_visible
                        from (
                            select m.msg_id, m.@row_id@ as row_id, m.vt
                            from @queue@ as m
                            where @group:m@ = g.message_group
                                and m.msg_id > g.msg_id
                            order by m.msg_id
                            limit missing
                        ) as f
                    ) as n
                    where n.is_visible
                    order by n.turn, g.seat
                    offset 0
                ) as p
                @fragment:group_lock@;
            while missing > 0 loop
                fetch followers into candidate;
                exit when not found;
                if candidate.row_id is null then
                    ended := pg_catalog.array_append(ended, candidate.seat);
                elsif candidate.seat <> all (ended) then
                    claimed := pg_catalog.array_append(claimed, candidate.row_id);
                    dealt := pg_catalog.array_append(dealt, candidate.msg_id);
                    missing := missing - 1;
                end if;
            end loop;
            close followers;
        end if;
    end if;
    return query
        @fragment:changed@
        order by pg_catalog.array_position(dealt, c.msg_id), c.msg_id;
end
$function$;
