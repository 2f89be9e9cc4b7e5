-- Templates of one queue, see queue.sql: the grouped reads.

-- What the three grouped reads share. In the order of their heads it locks the head of one group after the other, and
-- with the head the group, until there are "wanted" messages. A group whose first message is invisible, or whose head
-- another transaction holds, gives nothing. With "takes_rest" a group gives what else is visible of it before the
-- next.
-- @fragment group_variables
@fragment:hint_variables@
wanted constant bigint := coalesce(quantity, 9223372036854775807);
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
rest @row_type@[];
groups bigint[] := '{}';
heads bigint[] := '{}';
claimed @row_type@[] := '{}';

-- @fragment group_claim
@fragment:check_quantity@
@fragment:read_hints@
<<search>>
while cardinality(claimed) < wanted and not is_last loop
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
        if found then
            groups := groups || candidate.message_group;
            heads := heads || candidate.msg_id;
            claimed := claimed || locked_row;
            if takes_rest and cardinality(claimed) < wanted then
                select array_agg(c.row_id)
                into rest
                from (
                    select m.@row_id@ as row_id
                    from @queue@ as m
                    where @group:m@ = candidate.message_group
                        and m.msg_id > candidate.msg_id
                        and m.vt <= moment
                    order by m.msg_id
                    limit wanted - cardinality(claimed)
                    for update skip locked
                ) as c;
                claimed := claimed || rest;
            end if;
            exit search when cardinality(claimed) >= wanted;
        end if;
    end loop;
    close candidates;
end loop;
if random() * 32 < cardinality(claimed) then
    perform @function:advance@(moment, head, due, size, lowest);
end if;

-- With the index: walk the visible messages by id, a chunk at a time. The first of a group is its head unless the
-- index knows one before it. Where much is visible of groups that give nothing, go from group to group in the index
-- instead.
-- @fragment group_candidates_indexed
if walked = 0 then
    select array_agg(d.msg_id), array_agg(d.message_group), array_agg(d.row_id), count(*) = 1000
    into due_ids, due_groups, due_rows, is_dense
    from (
        select d.msg_id, @group:d@ as message_group, d.@row_id@ as row_id
        @fragment:due_rows@
        limit 1000
    ) as d;
end if;
if walked = 0 or walked + size <= 2500 then
    if is_dense then
        select array_agg(c.msg_id), array_agg(c.message_group), array_agg(c.row_id)
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
        select array_agg(c.msg_id), array_agg(c.message_group), array_agg(c.row_id)
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
    is_last := coalesce(cardinality(chunk_ids), 0) < size;
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

-- Without the index: one pass over the table.
-- @fragment group_candidates_scanned
is_last := true;
open candidates for
    select l.message_group, l.msg_id, l.row_id
    from (
        select distinct on (@group:m@) @group:m@ as message_group, m.msg_id, m.vt, m.@row_id@ as row_id
        from @queue@ as m
        order by @group:m@, m.msg_id
    ) as l
    where l.vt <= moment
    order by l.msg_id;

-- @fragment group_candidates
-- @if indexed
@fragment:group_candidates_indexed@
-- @else
@fragment:group_candidates_scanned@
-- @end

-- @section functions
create or replace function @function:read_grouped@(seconds integer, quantity integer)
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    takes_rest constant boolean := true;
    @fragment:group_variables@
begin
    @fragment:group_claim@
    return query
        @fragment:changed@
        order by c.msg_id;
end
$function$;

create or replace function @function:grouped_rr@(seconds integer, quantity integer)
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    takes_rest constant boolean := false;
    dealt bigint[];
    @fragment:group_variables@
begin
    @fragment:group_claim@
    -- Everybody has one: deal the second messages, the third ones, ... Other reads may take them meanwhile, so they
    -- are locked before they count.
    if cardinality(groups) between 1 and wanted - 1 then
        select array_agg(d.row_id order by d.turn, d.seat), array_agg(d.msg_id order by d.turn, d.seat)
        into rest, dealt
        from (
            select n.row_id, n.msg_id, n.turn, g.seat
            from unnest(groups, heads) with ordinality as g (message_group, msg_id, seat)
            cross join lateral (
                select m.@row_id@ as row_id, m.msg_id, row_number() over (order by m.msg_id) as turn
                from @queue@ as m
                where @group:m@ = g.message_group
                    and m.msg_id > g.msg_id
                    and m.vt <= moment
                order by m.msg_id
                limit wanted - cardinality(groups)
            ) as n
            order by n.turn, g.seat
            limit wanted - cardinality(groups)
        ) as d;
        claimed := claimed || array(
            select m.@row_id@
            from @queue@ as m
            where m.@row_id@ = any (rest)
                and m.vt <= moment
            for update skip locked
        );
    end if;
    dealt := heads || dealt;
    return query
        @fragment:changed@
        order by array_position(dealt, c.msg_id);
end
$function$;

create or replace function @function:grouped_head@(seconds integer, quantity integer)
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    takes_rest constant boolean := false;
    @fragment:group_variables@
begin
    @fragment:group_claim@
    return query
        @fragment:changed@
        order by c.msg_id;
end
$function$;
