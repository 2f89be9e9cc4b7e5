-- The templates of one queue. pgmq.create fills them in and runs them; nothing here is run as it stands.
--
--   @queue@, @archive@      the tables, qualified and quoted
--   @function:read@         the queue's own function of that name, qualified and quoted: pgmq."q_orders$read"
--   @sequence:head@         the queue's own sequence, likewise
--   @literal:head@          the same as a string literal
--   @owner@                 the owner of the queue's table, quoted
--   @persistence@           "unlogged" or nothing, for the table
--   @unlogged@              "unlogged" where the server knows unlogged sequences (PostgreSQL 15), else nothing
--   @row_id@, @row_type@    what a row is found by again in the same transaction: its ctid, which is the quickest; in a
--                           partitioned queue its msg_id, since a ctid is unique only within one partition
--   @group:m@               the message group of a row of m, as a number
--   @fragment:claim@        the fragment of that name from this file, so that functions that differ only in their end
--                           share the rest without paying for a call
--
--   @literal:channel@       where notifications are on, the channel as a string literal
--   @throttle@              and the least time between two of them, in milliseconds
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

-- @section fifo
create index if not exists @index:fifo@ on @queue@ ((@group@), msg_id);

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
create @unlogged@ sequence if not exists @sequence:head@;
create @unlogged@ sequence if not exists @sequence:due@;
create @unlogged@ sequence if not exists @sequence:sweep@;
alter sequence @sequence:head@ owner to @owner@;
alter sequence @sequence:due@ owner to @owner@;
alter sequence @sequence:sweep@ owner to @owner@;
alter sequence @sequence:head@ owned by @queue@.vt;
alter sequence @sequence:due@ owned by @queue@.vt;
alter sequence @sequence:sweep@ owned by @queue@.vt;
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
from_start boolean := false;
head bigint := 0;
due timestamptz;
claimed @row_type@[];
lowest bigint;
waiting bigint[];
place bigint;
found_rows @row_type@[];
found_id bigint;

-- @fragment due_hint
case
    when from_start then '-infinity'
    else to_timestamp(coalesce(pg_sequence_last_value(@literal:due@), 0) * 0.000001::double precision)
end

-- @fragment sweep_if_due
if date_part('epoch', moment) * 1000 >= coalesce(pg_sequence_last_value(@literal:sweep@), 0) then
    from_start := not @function:sweep@(moment);
end if;

-- The first ready messages that no other transaction holds, locked; none where something is due again, since they are all
-- there is only while nothing is. The hints stand in subqueries that run once, since a volatile function is no condition
-- for an index, and a subquery costs less than a variable.
-- @fragment ready_rows
from @queue@ as m
where m.vt <= m.enqueued_at
    and m.msg_id >= (select case when from_start then 0 else coalesce(pg_sequence_last_value(@literal:head@), 0) end)
    and m.vt <= moment
order by m.msg_id
limit case
    when exists (
        select
        from @queue@ as d
        where d.vt > d.enqueued_at
            and d.vt >= (
                select
                    @fragment:due_hint@
            )
            and d.vt <= moment
    ) then 0
    else quantity
end
for update skip locked

-- Locks the oldest visible messages and leaves them in "claimed", in any order.
-- @fragment claim
if condition is null then
    select array_agg(c.row_id), min(c.msg_id)
    into claimed, lowest
    from (
        select m.@row_id@ as row_id, m.msg_id
        @fragment:ready_rows@
    ) as c;
end if;
@fragment:claim_due@

-- @fragment return_one
if found then
    if random() * 32 < 1 then
        perform @function:advance@(msg_id, 4, moment);
    end if;
    return next;
    return;
end if;
@fragment:claim_due@

-- @fragment claim_due
if claimed is null then
    due :=
        @fragment:due_hint@;
    select array_agg(d.msg_id order by d.msg_id)
    into waiting
    from (
        select d.msg_id
        from @queue@ as d
        where d.vt > d.enqueued_at
            and d.vt >= due
            and d.vt <= moment
        limit 1000
    ) as d;
    if waiting is null and condition is null then
        return;
    elsif coalesce(cardinality(waiting), 0) < 1000 then
        if condition is null and not from_start then
            head := coalesce(pg_sequence_last_value(@literal:head@), 0);
        end if;
        waiting := coalesce(waiting, '{}');
        -- In turn, the ready messages before the next that is due again, and those due before the next that is ready.
        -- One statement for both would lock more than it takes, or sort all that is ready.
        place := head;
        loop
            if waiting[1] > place or waiting = '{}' then
                select array_agg(c.row_id), min(c.msg_id)
                into found_rows, found_id
                from (
                    select m.@row_id@ as row_id, m.msg_id
                    from @queue@ as m
                    where m.vt <= m.enqueued_at
                        and m.msg_id >= place
                        and m.msg_id < coalesce(waiting[1], 9223372036854775807)
                        and m.vt <= moment
                        and (condition is null or m.message @> condition)
                    order by m.msg_id
                    limit quantity - coalesce(cardinality(claimed), 0)
                    for update skip locked
                ) as c;
                claimed := claimed || found_rows;
                lowest := coalesce(lowest, found_id);
            end if;
            exit when waiting = '{}' or cardinality(claimed) >= quantity;

            select m.msg_id
            into place
            from @queue@ as m
            where m.vt <= m.enqueued_at
                and m.msg_id >= greatest(head, waiting[1])
                and m.vt <= moment
                and (condition is null or m.message @> condition)
            order by m.msg_id
            limit 1;
            place := coalesce(place, 9223372036854775807);
            select array_agg(c.row_id)
            into found_rows
            from (
                select m.@row_id@ as row_id
                from @queue@ as m
                where m.msg_id = any (waiting)
                    and m.msg_id < place
                    and m.vt <= moment
                    and (condition is null or m.message @> condition)
                order by m.msg_id
                limit quantity - coalesce(cardinality(claimed), 0)
                for update skip locked
            ) as c;
            claimed := claimed || found_rows;
            exit when cardinality(claimed) >= quantity;
            waiting := array(
                select w.msg_id
                from unnest(waiting) as w (msg_id)
                where w.msg_id > place
                order by w.msg_id
            );
        end loop;
    else
        -- With many due, visible messages are dense: walk all messages by id.
        select array_agg(c.row_id)
        into claimed
        from (
            select m.@row_id@ as row_id
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

-- What the three grouped reads share. In the order of their heads it locks the head of one group after the other, and
-- with the head the group, until there are "wanted" messages. A group whose first message is invisible, or whose head
-- another transaction holds, gives nothing. With "takes_rest" a group gives what else is visible of it before the next.
-- @fragment group_variables
moment constant timestamptz := clock_timestamp();
from_start boolean := false;
wanted constant bigint := coalesce(quantity, 9223372036854775807);
head bigint;
due timestamptz;
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
@fragment:sweep_if_due@
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
    perform @function:advance@(lowest, size, moment);
end if;

-- With the index: walk the visible messages by id, a chunk at a time. The first of a group is its head unless the index
-- knows one before it. Where much is visible of groups that give nothing, go from group to group in the index instead.
-- @fragment group_candidates_indexed
if walked = 0 then
    head := case when from_start then 0 else coalesce(pg_sequence_last_value(@literal:head@), 0) end;
    due :=
        @fragment:due_hint@;
    select array_agg(d.msg_id), array_agg(d.message_group), array_agg(d.row_id), count(*) = 1000
    into due_ids, due_groups, due_rows, is_dense
    from (
        select d.msg_id, @group:d@ as message_group, d.@row_id@ as row_id
        from @queue@ as d
        where d.vt > d.enqueued_at
            and d.vt >= due
            and d.vt <= moment
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
    @fragment:sweep_if_due@
    if quantity = 1 and condition is null then
        -- The commonest read, in one statement.
        update @queue@ as q
        set vt = moment + seconds * interval '1 second',
            read_ct = q.read_ct + 1,
            last_read_at = moment
        where q.@row_id@ = (
            select m.@row_id@
            @fragment:ready_rows@
        )
        returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        into msg_id, read_ct, enqueued_at, last_read_at, vt, message, headers;
        @fragment:return_one@
    else
        @fragment:claim@
    end if;
    return query
        with changed as (
            update @queue@ as q
            set vt = moment + seconds * interval '1 second',
                read_ct = q.read_ct + 1,
                last_read_at = moment
            where q.@row_id@ = any (claimed)
            returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        )
        select *
        from changed as c
        order by c.msg_id;
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
    @fragment:sweep_if_due@
    if quantity = 1 then
        delete from @queue@ as q
        where q.@row_id@ = (
            select m.@row_id@
            @fragment:ready_rows@
        )
        returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        into msg_id, read_ct, enqueued_at, last_read_at, vt, message, headers;
        @fragment:return_one@
    else
        @fragment:claim@
    end if;
    return query
        with removed as (
            delete from @queue@ as q
            where q.@row_id@ = any (claimed)
            returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        )
        select *
        from removed as r
        order by r.msg_id;
end
$function$;

create or replace function @function:read_grouped@(seconds integer, quantity integer)
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
    takes_rest constant boolean := true;
    @fragment:group_variables@
begin
    @fragment:group_claim@
    return query
        with changed as (
            update @queue@ as q
            set vt = moment + seconds * interval '1 second',
                read_ct = q.read_ct + 1,
                last_read_at = moment
            where q.@row_id@ = any (claimed)
            returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        )
        select *
        from changed as c
        order by c.msg_id;
end
$function$;

create or replace function @function:grouped_rr@(seconds integer, quantity integer)
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
    takes_rest constant boolean := false;
    dealt bigint[];
    @fragment:group_variables@
begin
    @fragment:group_claim@
    -- Everybody has one: deal the second messages, the third ones, ... Other reads may take them meanwhile, so they are
    -- locked before they count.
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
        with changed as (
            update @queue@ as q
            set vt = moment + seconds * interval '1 second',
                read_ct = q.read_ct + 1,
                last_read_at = moment
            where q.@row_id@ = any (claimed)
            returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        )
        select *
        from changed as c
        order by array_position(dealt, c.msg_id);
end
$function$;

create or replace function @function:grouped_head@(seconds integer, quantity integer)
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
    takes_rest constant boolean := false;
    @fragment:group_variables@
begin
    @fragment:group_claim@
    return query
        with changed as (
            update @queue@ as q
            set vt = moment + seconds * interval '1 second',
                read_ct = q.read_ct + 1,
                last_read_at = moment
            where q.@row_id@ = any (claimed)
            returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
        )
        select *
        from changed as c
        order by c.msg_id;
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
        -- A hint that was never written hides nothing: it must not begin here.
        new_head := least(new_head, coalesce(pg_sequence_last_value(@literal:head@), 0));
        new_due := least(
            greatest(date_part('epoch', visible_at), 0) * 1000000 - 1,
            coalesce(pg_sequence_last_value(@literal:due@), 0)
        );
        perform @function:keep@(new_head, new_due, new_sweep);
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
    -- Variables, since a volatile function is no condition for an index.
    from_start constant boolean := false;
    due constant timestamptz :=
        @fragment:due_hint@;
    earliest timestamptz;
    new_head bigint;
    new_due bigint;
    new_sweep constant bigint := null;
begin
    select d.vt
    into earliest
    from @queue@ as d
    where d.vt > d.enqueued_at
        and d.vt >= due
        and d.vt <= moment
    order by d.vt
    limit 1;
    new_head := greatest(lowest - greatest(margin, 128), pg_sequence_last_value(@literal:head@));
    new_due := date_part('epoch', coalesce(earliest, moment)) * 1000000 - 10000;
    perform @function:keep@(new_head, new_due, new_sweep);
end
$function$;

-- Looks for messages that the hints hide, and lowers the hints to them. It is due once a second, and later where it took
-- long, so that it takes no more than a tenth of the time. Returns whether the hints may be relied on by this session.
create or replace function @function:sweep@(moment timestamptz)
returns boolean
language plpgsql
@fragment:settings@
as $function$
declare
    head constant bigint := pg_sequence_last_value(@literal:head@);
    earliest timestamptz;
    straggler bigint;
    started timestamptz;
begin
    -- First, so that others leave it to this session. One that cannot tell them reads without hints.
    if not @function:keep@(null, null, ((date_part('epoch', moment) + 2) * 1000)::bigint) then
        return false;
    end if;
    started := clock_timestamp();
    -- A message that a running transaction holds is not hidden: it is taken.
    select m.msg_id
    into straggler
    from @queue@ as m
    where m.vt <= m.enqueued_at
        and m.msg_id < head
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
    return @function:keep@(
        straggler,
        (date_part('epoch', greatest(coalesce(earliest, moment), 'epoch')) * 1000000 - 10000)::bigint,
        (
            1000 * (
                date_part('epoch', clock_timestamp())
                + greatest(1, 10 * date_part('epoch', clock_timestamp() - started))
            )
        )::bigint
    );
end
$function$;

-- Writes the hints, as far as they are not NULL, and returns whether that was allowed.
create or replace function @function:keep@(new_head bigint, new_due bigint, new_sweep bigint)
returns boolean
language plpgsql
as $function$
begin
    if has_sequence_privilege(@literal:head@, 'UPDATE') then
        perform @function:hint@(new_head, new_due, new_sweep);
        return true;
    end if;
    return @function:owner_hint@(new_head, new_due, new_sweep);
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
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    if not has_table_privilege(
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        @literal:queue@,
        'UPDATE'
    ) then
        return false;
    end if;
    perform @function:hint@(new_head, new_due, new_sweep);
    return true;
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
