-- Templates of one queue, see queue.sql: read and pop.
--
-- How a read finds its messages is told in docs/internals.md. In short: the index "ready" holds what was never read
-- nor delayed, in the order of ids; the index "parked" holds what is in flight, delayed or due again, in the order of
-- vt. The hints (hints.sql) say where in the two to begin.

-- @fragment hint_variables
moment constant timestamptz := clock_timestamp();
microseconds constant bigint := date_part('epoch'::text, moment) * 1000000::float8;
sweep constant bigint := pg_sequence_last_value(@literal:sweep@::regclass);
head bigint;
due timestamptz;

-- The hints as variables, since a volatile function is no condition for an index.
-- @fragment read_hints
if not pgmq._stands(sweep, pg_sequence_last_value(@literal:due@::regclass), microseconds)
    and not pgmq._sweep(@literal:queue@::regclass, moment)
then
    head := -9223372036854775808;
    due := '-infinity';
else
    head := coalesce(pg_sequence_last_value(@literal:head@::regclass), -9223372036854775808);
    due := pgmq._time_of(pg_sequence_last_value(@literal:due@::regclass));
end if;

-- @fragment check_quantity
if quantity < 0 then
    raise exception 'pgmq: qty must not be negative'
        using errcode = 'invalid_row_count_in_limit_clause',
            hint = 'NULL means all.';
end if;

-- @fragment due_rows
from @queue@ as d
where d.vt > d.enqueued_at
    and d.vt >= due
    and d.vt <= moment

-- The ready messages, where nothing is due again: they are all there is only then.
-- @fragment ready_rows
from @queue@ as m
where m.vt <= m.enqueued_at
    and m.msg_id >= first_id
    and m.vt <= moment
    and not exists (
        select
        @fragment:due_rows@
    )
order by m.msg_id

-- One read in 32 moves the hints up, of a batch up to one in four: what it saves the others is some dead rows to step
-- over.
-- @fragment batch_variables
@fragment:hint_variables@
first_id bigint;

-- @fragment batch_place
@fragment:check_quantity@
@fragment:read_hints@
first_id := head;
if condition is null
    and random() < least(quantity, 8)::float8 * 0.03125::float8
then
    perform @function:advance@(moment, head, due, 4::bigint * quantity::bigint, null::bigint);
end if;

-- What a batch takes: the first ready messages or, where something is due or a condition is given, what claim_due locks.
-- All in one statement: a second one would fire the triggers of statements twice.
-- @fragment batch
where q.@row_id@ = any (
    coalesce(
        (
            select pg_catalog.array_agg(r.row_id)
            from (
                select m.@row_id@ as row_id
                @fragment:ready_rows@
                limit quantity
                for update skip locked
            ) as r
            where condition is null
        ),
        (select @function:claim_due@(quantity, condition, moment, head, due, false))
    )
)
@fragment:returning_message@

-- @fragment one_variables
@fragment:hint_variables@
first_id bigint;
taken pgmq.message_record;

-- In a crowd everybody would fight for the same message, so there each begins at another place, except for the one
-- read in 32 that moves the hints up.
-- @fragment one_place
@fragment:read_hints@
first_id := head;
if random() < 0.03125::float8 then
    perform @function:advance@(moment, head, due, 4::bigint, null::bigint);
elsif sweep & 1023::bigint > 1 then
    first_id := head + 128::bigint
        + (random() * (sweep & 1023::bigint)::float8)::bigint;
end if;

-- @fragment one
where q.@row_id@ = coalesce(
    (
        select m.@row_id@
        @fragment:ready_rows@
        limit 1
        for update skip locked
    ),
    (select (@function:claim_due@(1, null::jsonb, moment, head, due, first_id > head))[1])
)
@fragment:returning_message@
into taken;
return taken;

-- @fragment hide
update @queue@ as q
set vt = moment + seconds::float8 * '1 second'::interval,
    read_ct = least(q.read_ct, 2147483646) + 1,
    last_read_at = moment

-- What was claimed, invisible from now on.
-- @fragment changed
with changed as (
    @fragment:hide@
    where q.@row_id@ = any (claimed)
    @fragment:returning_message@
)
select *
from changed as c

-- The end of the statements that lock what is missing of a read.
-- @fragment rest
    and m.vt <= moment
    and (condition is null or m.message @> condition)
order by m.msg_id
limit quantity - pg_catalog.cardinality(claimed)
for update skip locked

-- Whether no transaction holds a message.
-- @fragment is_free
m.xmax = '0'::xid
or pg_visible_in_snapshot((horizon - ((horizon - m.xmax::text::bigint) & 4294967295))::text::xid8, snapshot)

-- @section functions
create or replace function @function:read@(seconds integer, quantity integer, condition jsonb)
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    @fragment:batch_variables@
begin
    @fragment:batch_place@
    return query
        with changed as (
            @fragment:hide@
            @fragment:batch@
        )
        select *
        from changed as c
        order by c.msg_id;
end
$function$;

create or replace function @function:pop@(quantity integer)
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    condition constant jsonb := null;
    @fragment:batch_variables@
begin
    @fragment:batch_place@
    return query
        with removed as (
            delete from @queue@ as q
            @fragment:batch@
        )
        select *
        from removed as r
        order by r.msg_id;
end
$function$;

-- The commonest reads, of one message. They return a record, NULL where there is none: to call a function that returns
-- a set costs as much as half a read.
create or replace function @function:read_one@(seconds integer)
returns record
language plpgsql
@fragment:settings@
as $function$
declare
    @fragment:one_variables@
begin
    @fragment:one_place@
    @fragment:hide@
    @fragment:one@
end
$function$;

create or replace function @function:pop_one@()
returns record
language plpgsql
@fragment:settings@
as $function$
declare
    @fragment:one_variables@
begin
    @fragment:one_place@
    delete from @queue@ as q
    @fragment:one@
end
$function$;

-- What is claimed where no ready message was, or something is due again, or there is a condition. Locks the oldest
-- visible messages of both kinds and returns where they are, in any order, or NULL. Where nothing is due, and the caller
-- has looked at what is ready from the head on, there is nothing.
create or replace function @function:claim_due@(
    quantity integer,
    condition jsonb,
    moment timestamptz,
    head bigint,
    due timestamptz,
    is_ready_beyond boolean
)
returns @row_type@[]
language plpgsql
@fragment:settings@
as $function$
declare
    waiting bigint[];
    place bigint := case when condition is null then head else -9223372036854775808 end;
    claimed @row_type@[] := '{}';
begin
    select pg_catalog.array_agg(w.msg_id order by w.msg_id)
    into waiting
    from (
        select d.msg_id
        @fragment:due_rows@
            and (condition is null or d.message @> condition)
        limit 1000
    ) as w;
    if waiting is null and condition is null and not is_ready_beyond then
        return null;
    elsif pg_catalog.cardinality(waiting) = 1000 then
        -- Too many to sort: in the order in which they came due, and what is ready after them.
        claimed := array(
            select d.@row_id@
            @fragment:due_rows@
                and (condition is null or d.message @> condition)
            order by d.vt
            limit quantity
            for update skip locked
        );
        waiting := null;
    end if;

    -- In turn, the ready messages before the next that is due again, and those due before the next that is ready. One
    -- statement for both would lock more than it takes, or sort all that is ready.
    while (pg_catalog.cardinality(claimed) < quantity) is not false loop
        if coalesce(waiting[1], place) >= place then
            claimed := pg_catalog.array_cat(
                claimed,
                array(
                    select m.@row_id@
                    from @queue@ as m
                    where m.vt <= m.enqueued_at
                        and m.msg_id >= place
                        and m.msg_id <= coalesce(waiting[1] - 1::bigint, 9223372036854775807)
                    @fragment:rest@
                )
            );
        end if;
        exit when waiting[1] is null or pg_catalog.cardinality(claimed) >= quantity;

        select m.msg_id
        into place
        from @queue@ as m
        where m.vt <= m.enqueued_at
            and m.msg_id >= greatest(place, waiting[1])
            and m.vt <= moment
            and (condition is null or m.message @> condition)
        order by m.msg_id
        limit 1;
        claimed := pg_catalog.array_cat(
            claimed,
            array(
                select m.@row_id@
                from @queue@ as m
                where m.msg_id = any (waiting)
                    and m.msg_id <= coalesce(place - 1::bigint, 9223372036854775807)
                @fragment:rest@
            )
        );
        waiting := array(
            select w.msg_id
            from pg_catalog.unnest(waiting) as w (msg_id)
            where w.msg_id > place
            order by w.msg_id
        );
    end loop;
    return case when pg_catalog.cardinality(claimed) > 0 then claimed end;
end
$function$;

-- Moves the hints up to what is there now: no ready message is free below "lowest", which is looked for where it is
-- NULL. The margin is for messages whose ids are lower and whose transactions commit or roll back a little later; what
-- comes later still waits for a sweep.
create or replace function @function:advance@(
    moment timestamptz,
    head bigint,
    due timestamptz,
    margin bigint,
    lowest bigint
)
returns void
language plpgsql
@fragment:settings@
as $function$
declare
    queue constant regclass := @literal:queue@;
    sweep constant bigint := pg_sequence_last_value(@literal:sweep@::regclass);
    spread constant bigint := greatest(sweep & 1023::bigint, 1::bigint);
    snapshot constant pg_snapshot := pg_current_snapshot();
    -- A holder is known by the 32 lower bits of its transaction's id.
    horizon constant bigint := pg_snapshot_xmax(snapshot)::text::bigint + 2147483648;
    earliest timestamptz;
    holders bigint;
    last_ready bigint;
    new_head bigint;
    new_spread bigint;
begin
    if row_security_active(queue::oid) then
        return;
    end if;
    -- A crowd is eight transactions or more that hold messages at the front, taken and not yet committed.
    select l.msg_id,
        (
            select d.vt
            @fragment:due_rows@
            order by d.vt
            limit 1
        ),
        (
            select pg_catalog.count(distinct m.xmax::text::bigint)
            from @queue@ as m
            where m.vt <= m.enqueued_at
                and m.msg_id >= head
                and m.msg_id < least(l.msg_id, 9223372036854774807) + spread
                and m.vt <= moment
                and not (
                    @fragment:is_free@
                )
        )
    into lowest, earliest, holders
    from (
        select coalesce(
            lowest,
            (
                select m.msg_id
                from @queue@ as m
                where m.vt <= m.enqueued_at
                    and m.msg_id >= head
                    and m.vt <= moment
                    and (
                        @fragment:is_free@
                    )
                order by m.msg_id
                limit 1
            )
        ) as msg_id
        offset 0
    ) as l;
    -- Where nothing is due a sweep does it in time, if it comes.
    if earliest is not null or due < moment - '1 second'::interval then
        perform pgmq._keep(queue, @literal:due@::regclass, pgmq._due_before(coalesce(earliest, moment)));
    end if;
    if lowest is null then
        return;
    end if;
    new_head := greatest(greatest(lowest, -9000000000000000000) - greatest(margin, 128::bigint), head);
    if new_head <> head then
        perform pgmq._keep(queue, @literal:head@::regclass, new_head);
    end if;

    -- Who began behind the last message would find none, and begin again at the head.
    if holders >= 8 then
        select m.msg_id
        into last_ready
        from @queue@ as m
        where m.vt <= m.enqueued_at
            and m.msg_id > lowest
        order by m.msg_id desc
        limit 1;
    end if;
    new_spread := case
        when holders >= 8
            then least(
                16::bigint * holders,
                1000::bigint,
                greatest((coalesce(last_ready, lowest) - new_head - 128::bigint) / 4::bigint * 3::bigint, 1::bigint)
            )
        when holders > 1 then greatest(spread / 2::bigint, 1::bigint)
        else 1
    end;
    if new_spread <> spread then
        perform pgmq._keep(queue, @literal:sweep@::regclass, (sweep - (sweep & 1023::bigint)) | new_spread);
    end if;
end
$function$;
