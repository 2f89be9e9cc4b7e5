-- Templates of one queue, see queue.sql: read and pop, and the hints.
--
-- How a read finds its messages is told in docs/internals.md. In short: the index "ready" holds what was never read
-- nor delayed, in the order of ids; the index "parked" holds what is in flight, delayed or due again, in the order of
-- vt. Six sequences serve as memory without row versions: nothing ready was left below the id in "head" when it was
-- written, nothing due was left before the time in "due" (microseconds since 1970), and at the time in "sweep"
-- (milliseconds since 1970) a reader looks below both for what a late commit or a rollback left there. In a crowd,
-- readers of one message begin at different places, over as many ids as "spread" says. Where very many messages are
-- due, readers walk all by id: at the time in "walked" (microseconds since 1970) nothing visible was left below the id
-- in "walk", which is 1 otherwise. They are hints: a wrong one costs time or up to a second of delay, never a message.

-- @fragment hint_variables
moment constant timestamptz := clock_timestamp();
head bigint;
due timestamptz;

-- The hints as variables, since a volatile function is no condition for an index.
-- @fragment read_hints
if date_part('epoch', moment) * 1000 >= coalesce(pg_sequence_last_value(@literal:sweep@), 0)
    and not @function:sweep@(moment)
then
    head := 0;
    due := '-infinity';
else
    head := coalesce(pg_sequence_last_value(@literal:head@), 0);
    due := to_timestamp(coalesce(pg_sequence_last_value(@literal:due@), 0) * 0.000001::double precision);
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

-- @fragment claim_variables
@fragment:hint_variables@
-- One read in many moves the hints up: what it saves the others is some dead rows to step over.
moves_hints constant boolean := random() * 32 < least(quantity, 8);
first_id bigint;
claimed @row_type@[];
lowest bigint;

-- The end of the statement that takes the first ready messages, in the reads that do not move the hints.
-- @fragment ready_batch
where q.@row_id@ = any (
    array(
        select m.@row_id@
        @fragment:ready_rows@
        limit quantity
        for update skip locked
    )
)
@fragment:returning_message@

-- Where that statement has not taken a message, or was not tried: locks the first visible messages and leaves them in
-- "claimed".
-- @fragment claim
if condition is null and moves_hints then
    select array_agg(c.row_id), min(c.msg_id)
    into claimed, lowest
    from (
        select m.@row_id@ as row_id, m.msg_id
        @fragment:ready_rows@
        limit quantity
        for update skip locked
    ) as c;
end if;
if claimed is not null then
    perform @function:advance@(lowest, 4::bigint * quantity, moment);
else
    claimed := @function:claim_due@(quantity, condition, moment, head, due);
    if claimed is null then
        return;
    end if;
end if;

-- @fragment one_variables
@fragment:hint_variables@
-- One read in many begins at the head, whatever the others do, and moves the hints up.
is_first constant boolean := random() * 32 < 1;
first_id bigint;
taken pgmq.message_record;
claimed @row_type@[];

-- In a crowd everybody would fight for the same message, so there each begins at another place.
-- @fragment one_place
@fragment:read_hints@
first_id := head;
if not is_first and pg_sequence_last_value(@literal:spread@) > 1 then
    first_id := head + 128 + (random() * pg_sequence_last_value(@literal:spread@))::bigint;
end if;

-- The end of the statement that takes the first ready message, and of its loop.
-- @fragment ready_row
where q.@row_id@ = (
    select m.@row_id@
    @fragment:ready_rows@
    limit 1
    for update skip locked
)
@fragment:returning_message@
into taken;
exit when found or first_id = head;
first_id := head;

-- Where one statement has not taken a message.
-- @fragment claim_one
if found then
    if is_first then
        perform @function:advance@(taken.msg_id, 4, moment);
    end if;
    return taken;
end if;
claimed := @function:claim_due@(1, null, moment, head, due);
if claimed is null then
    return null;
end if;

-- @fragment hide
update @queue@ as q
set vt = moment + seconds * interval '1 second',
    read_ct = q.read_ct + 1,
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
limit quantity - cardinality(claimed)
for update skip locked

-- Of what is due again the messages before a place.
-- @fragment claim_waiting
claimed := claimed || array(
    select m.@row_id@
    from @queue@ as m
    where m.msg_id = any (waiting)
        and m.msg_id < place
    @fragment:rest@
);

-- @section functions
create or replace function @function:read@(seconds integer, quantity integer, condition jsonb)
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    @fragment:claim_variables@
begin
    @fragment:check_quantity@
    @fragment:read_hints@
    first_id := head;
    if condition is null and not moves_hints then
        return query
            with changed as (
                @fragment:hide@
                @fragment:ready_batch@
            )
            select *
            from changed as c
            order by c.msg_id;
        if found then
            return;
        end if;
    end if;
    @fragment:claim@
    return query
        @fragment:changed@
        order by c.msg_id;
end
$function$;

create or replace function @function:pop@(quantity integer)
@fragment:returns_messages@
as $function$
#variable_conflict use_column
declare
    condition constant jsonb := null;
    @fragment:claim_variables@
begin
    @fragment:check_quantity@
    @fragment:read_hints@
    first_id := head;
    if not moves_hints then
        return query
            with removed as (
                delete from @queue@ as q
                @fragment:ready_batch@
            )
            select *
            from removed as r
            order by r.msg_id;
        if found then
            return;
        end if;
    end if;
    @fragment:claim@
    return query
        with removed as (
            delete from @queue@ as q
            where q.@row_id@ = any (claimed)
            @fragment:returning_message@
        )
        select *
        from removed as r
        order by r.msg_id;
end
$function$;

-- The commonest reads, of one message, in one statement. They return a record, NULL where there is none: to call a
-- function that returns a set costs as much as half a read.
create or replace function @function:read_one@(seconds integer)
returns record
language plpgsql
@fragment:settings@
as $function$
declare
    @fragment:one_variables@
begin
    @fragment:one_place@
    loop
        @fragment:hide@
        @fragment:ready_row@
    end loop;
    @fragment:claim_one@
    @fragment:hide@
    where q.@row_id@ = any (claimed)
    @fragment:returning_message@
    into taken;
    return taken;
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
    loop
        delete from @queue@ as q
        @fragment:ready_row@
    end loop;
    @fragment:claim_one@
    delete from @queue@ as q
    where q.@row_id@ = any (claimed)
    @fragment:returning_message@
    into taken;
    return taken;
end
$function$;

-- What is claimed where a read of what is ready gave nothing, or has a condition: something may be due again. Locks
-- the oldest visible messages of both kinds and returns where they are, in any order, or NULL.
create or replace function @function:claim_due@(
    quantity integer,
    condition jsonb,
    moment timestamptz,
    head bigint,
    due timestamptz
)
returns @row_type@[]
language plpgsql
@fragment:settings@
as $function$
declare
    -- Who reads without hints does without this one, too.
    walk bigint := case
        when condition is null and isfinite(due) then coalesce(pg_sequence_last_value(@literal:walk@), 1)
        else 1
    end;
    is_walking boolean := walk > 1;
    waiting bigint[];
    place bigint := case when condition is null then head else 0 end;
    found_rows @row_type@[];
    found_id bigint;
    lowest bigint;
    claimed @row_type@[] := '{}';
begin
    -- What came due since the walk began is looked for below it.
    if is_walking then
        due := greatest(
            due,
            to_timestamp(coalesce(pg_sequence_last_value(@literal:walked@), 0) * 0.000001::double precision)
        );
    end if;
    select array_agg(w.msg_id order by w.msg_id)
    into waiting
    from (
        select d.msg_id
        @fragment:due_rows@
        limit 1000
    ) as w;
    if cardinality(waiting) = 1000 then
        -- Too many to sort: walk all messages by id, from the beginning.
        is_walking := true;
        walk := 1;
        waiting := null;
    end if;
    if is_walking then
        place := walk;
        @fragment:claim_waiting@
        if cardinality(claimed) >= quantity then
            return claimed;
        end if;
        select array_agg(c.row_id), min(c.msg_id)
        into found_rows, found_id
        from (
            select m.@row_id@ as row_id, m.msg_id
            from @queue@ as m
            where m.msg_id >= place
            @fragment:rest@
        ) as c;
        if condition is null then
            perform @function:advance_walk@(
                walk,
                case when cardinality(claimed || found_rows) >= quantity then found_id end,
                quantity,
                case when claimed = '{}' then moment end
            );
        end if;
        return nullif(claimed || found_rows, '{}');
    elsif waiting is null and condition is null then
        return null;
    end if;

    -- In turn, the ready messages before the next that is due again, and those due before the next that is ready. One
    -- statement for both would lock more than it takes, or sort all that is ready.
    loop
        if coalesce(waiting[1], place) >= place then
            select array_agg(c.row_id), min(c.msg_id)
            into found_rows, found_id
            from (
                select m.@row_id@ as row_id, m.msg_id
                from @queue@ as m
                where m.vt <= m.enqueued_at
                    and m.msg_id >= place
                    and m.msg_id < coalesce(waiting[1], 9223372036854775807)
                @fragment:rest@
            ) as c;
            claimed := claimed || found_rows;
            lowest := coalesce(lowest, found_id);
        end if;
        exit when waiting[1] is null or cardinality(claimed) >= quantity;

        select m.msg_id
        into place
        from @queue@ as m
        where m.vt <= m.enqueued_at
            and m.msg_id >= greatest(place, waiting[1])
            and m.vt <= moment
            and (condition is null or m.message @> condition)
        order by m.msg_id
        limit 1;
        place := coalesce(place, 9223372036854775807);
        @fragment:claim_waiting@
        exit when cardinality(claimed) >= quantity;
        waiting := array(
            select w.msg_id
            from unnest(waiting) as w (msg_id)
            where w.msg_id > place
            order by w.msg_id
        );
    end loop;
    if condition is null and random() * 32 < least(cardinality(claimed), 8) then
        perform @function:advance@(lowest, 4::bigint * quantity, moment);
    end if;
    return nullif(claimed, '{}');
end
$function$;

-- Moves the hints up to what a read has just found: no ready message was free below "lowest". The margin is for
-- messages whose ids are lower and whose transactions commit or roll back a little later; what is later still waits
-- for a sweep.
create or replace function @function:advance@(lowest bigint, margin bigint, moment timestamptz)
returns void
language plpgsql
@fragment:settings@
as $function$
declare
    due constant timestamptz :=
        to_timestamp(coalesce(pg_sequence_last_value(@literal:due@), 0) * 0.000001::double precision);
    head constant bigint := coalesce(pg_sequence_last_value(@literal:head@), 0);
    spread constant bigint := coalesce(pg_sequence_last_value(@literal:spread@), 1);
    snapshot constant pg_snapshot := pg_current_snapshot();
    horizon constant bigint := pg_snapshot_xmax(snapshot)::text::bigint;
    earliest timestamptz;
    holders bigint;
    new_head bigint;
    new_due bigint;
    new_spread bigint;
    last_ready bigint;
begin
    select d.vt
    into earliest
    @fragment:due_rows@
    order by d.vt
    limit 1;
    new_head := greatest(lowest - greatest(margin, 128), head);
    new_due := date_part('epoch', coalesce(earliest, moment)) * 1000000 - 10000;

    -- A crowd is eight transactions or more that hold messages at the front, taken and not yet committed. (A holder is
    -- known by the 32 lower bits of its id.)
    select count(*)
    into holders
    from (
        select distinct m.xmax as holder
        from @queue@ as m
        where m.vt <= m.enqueued_at
            and m.msg_id >= head
            and m.msg_id < lowest + spread
            and m.vt <= moment
            and m.xmax <> '0'::xid
    ) as h
    where not pg_visible_in_snapshot(
        (horizon + 2147483648 - ((horizon + 2147483648 - holder::text::bigint) & 4294967295))::text::xid8,
        snapshot
    );
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
        when holders >= 8 then least(16 * holders, 1000, greatest((coalesce(last_ready, 0) - new_head - 128) * 3 / 4, 1))
        when holders > 1 then greatest(spread / 2, 1)
        else 1
    end;
    perform @function:keep@(new_head, new_due, new_spread => new_spread);
end
$function$;

-- Moves the walk up to the lowest id that it has just taken, less a margin as above, or ends it where there is none
-- since all was taken. "moment" is NULL where messages below the walk were taken too, which may come back.
create or replace function @function:advance_walk@(walk bigint, lowest bigint, quantity integer, moment timestamptz)
returns void
language plpgsql
@fragment:settings@
as $function$
declare
    new_walk constant bigint := lowest - greatest(4::bigint * quantity, 128);
begin
    if lowest is null then
        perform @function:keep@(new_walk => 1);
    elsif new_walk - walk > 512 or random() * 32 < least(quantity, 8) then
        perform @function:keep@(
            new_walk => new_walk,
            new_walked => (date_part('epoch', moment) * 1000000 - 10000)::bigint
        );
        -- For the first that is due: the other hints of the two are out of use meanwhile.
        perform @function:advance@(0, 0, clock_timestamp());
    end if;
end
$function$;

-- Looks for messages that the hints hide, and lowers the hints to them. It is due once a second, and later where it
-- took long, so that it takes no more than a tenth of the time. Returns whether the hints may be relied on by this
-- session.
create or replace function @function:sweep@(moment timestamptz)
returns boolean
language plpgsql
@fragment:settings@
as $function$
declare
    head constant bigint := pg_sequence_last_value(@literal:head@);
    walk constant bigint := pg_sequence_last_value(@literal:walk@);
    earliest timestamptz;
    straggler bigint;
    new_walk bigint;
    started timestamptz;
begin
    -- First, so that others leave it to this session. One that cannot tell them reads without hints.
    if not @function:keep@(new_sweep => ((date_part('epoch', moment) + 2) * 1000)::bigint) then
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
    if walk > 1 then
        perform
        from @queue@ as d
        where d.vt > d.enqueued_at
            and d.vt <= moment
        limit 1
        offset 999;
        if found then
            select m.msg_id
            into new_walk
            from @queue@ as m
            where m.msg_id < walk
                and m.vt <= moment
            order by m.msg_id
            limit 1
            for update skip locked;
        else
            new_walk := 1;
        end if;
    end if;
    return @function:keep@(
        straggler,
        (date_part('epoch', greatest(coalesce(earliest, moment), 'epoch')) * 1000000 - 10000)::bigint,
        (
            1000 * (
                date_part('epoch', clock_timestamp())
                + greatest(1, 10 * date_part('epoch', clock_timestamp() - started))
            )
        )::bigint,
        new_walk => new_walk
    );
end
$function$;

-- Writes the hints, as far as they are not NULL, and returns whether that was allowed.
create or replace function @function:keep@(
    new_head bigint default null,
    new_due bigint default null,
    new_sweep bigint default null,
    new_spread bigint default null,
    new_walk bigint default null,
    new_walked bigint default null
)
returns boolean
language plpgsql
as $function$
begin
    if has_sequence_privilege(@literal:head@, 'UPDATE') then
        perform @function:hint@(new_head, new_due, new_sweep, new_spread, new_walk, new_walked);
        return true;
    end if;
    return @function:owner_hint@(new_head, new_due, new_sweep, new_spread, new_walk, new_walked);
end
$function$;

create or replace function @function:hint@(
    new_head bigint,
    new_due bigint,
    new_sweep bigint,
    new_spread bigint,
    new_walk bigint,
    new_walked bigint
)
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
    if new_spread is not null then
        perform setval(@literal:spread@, new_spread);
    end if;
    if new_walk is not null then
        perform setval(@literal:walk@, greatest(new_walk, 1));
    end if;
    if new_walked is not null then
        perform setval(@literal:walked@, new_walked);
    end if;
end
$function$;

-- SECURITY DEFINER, so that whoever may read the queue can keep its hints without a grant on the sequences. The
-- caller is the session's role: one that may not read the queue changes nothing.
create or replace function @function:owner_hint@(
    new_head bigint,
    new_due bigint,
    new_sweep bigint,
    new_spread bigint,
    new_walk bigint,
    new_walked bigint
)
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
    perform @function:hint@(new_head, new_due, new_sweep, new_spread, new_walk, new_walked);
    return true;
end
$function$;
