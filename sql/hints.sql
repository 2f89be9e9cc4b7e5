-- The hints of a queue: where its reads begin. docs/internals.md, "The hints", says what they are for.
--
-- A hint is the last value of a sequence that the queue's table owns, since a sequence has no row versions and no
-- transaction. Each may be missing (never written, or lost in a crash): then reads begin at the beginning.
--
--   hint    unit                      what it says                                   a wrong one costs
--   head    id                        nothing ready was left below this id           a second or two for what is below,
--                                                                                    or dead rows to step over
--   due     microseconds since 1970   nothing due was left before this time          the same
--   sweep   packed, see _pack_sweep   when the last sweep began, for how many        a sweep too many, or one that comes
--                                     seconds it stands, and how far a crowd         a second late; or the order among
--                                     of readers spreads                             the readers of a crowd
--
-- head and due are raised by _advance, which one read in 32 calls, and lowered by _sweep and by _unhide. A sweep looks
-- below both for what a late commit, a rollback or a direct update left there. What a session may not see is not gone:
-- one that row security restricts writes no hint.

create function pgmq._hint(queue regclass, hint text)
returns regclass
stable
language sql
as $function$
    select s.oid::regclass
    from pg_catalog.pg_depend as d
    join pg_catalog.pg_class as s
        on s.oid = d.objid
    where d.refclassid = 'pg_catalog.pg_class'::regclass::oid
        and d.refobjid = queue::oid
        and d.classid = 'pg_catalog.pg_class'::regclass::oid
        and d.deptype = 'a'::"char"
        and s.relkind = 'S'::"char"
        and split_part(s.relname::text, '$'::text, -1) = hint
$function$;
comment on function pgmq._hint(regclass, text) is
'Internal: the sequence that holds a hint of a queue. It is one that the queue''s table owns, so that it belongs to
nobody else.';

create function pgmq._microseconds(moment timestamptz)
returns bigint
stable
language sql
as $function$
    select case
        when moment < '0001-01-01 00:00:00+00'::timestamptz then (-9223372036854775808)::bigint
        else (date_part('epoch'::text, moment) * 1000000::double precision)::bigint
    end
$function$;
comment on function pgmq._microseconds(timestamptz) is
'Internal: a time as the hint due has it. Before the year 1 it is the lowest number, which reads take for -infinity.';

create function pgmq._pack_sweep(began timestamptz, pause integer, spread bigint)
returns bigint
stable
language sql
as $function$
    select ((date_part('epoch'::text, began) * 1000::double precision)::bigint << 16)
        | (pause::bigint << 10)
        | spread
$function$;
comment on function pgmq._pack_sweep(timestamptz, integer, bigint) is
'Internal: the hint sweep. Milliseconds since 1970 when the sweep began, 6 bits for the seconds until the next one, at
most 60, and 10 bits for the number of ids over which a crowd of readers spreads, at most 1000, or 1.';

-- The caller is the session's role, which owns neither the sequence nor this function: it changes nothing unless it may
-- update the queue, sees all of it, and what it says is possible.
create function pgmq._keep_as_owner(queue regclass, hint text, value bigint)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    caller constant name := coalesce(nullif(current_setting('role'::text), 'none'::text), session_user::text)::name;
    sequence constant regclass := pgmq._hint(queue, hint);
    moment constant timestamptz := clock_timestamp();
    is_restricted boolean;
    last_id bigint;
begin
    if sequence is null or not coalesce(has_table_privilege(caller, queue::oid, 'UPDATE'::text), false) then
        return false;
    end if;
    select c.relrowsecurity
        and not exists (
            select
            from pg_roles as r
            where r.rolname = caller
                and (r.rolsuper or r.rolbypassrls)
        )
    into is_restricted
    from pg_class as c
    where c.oid = queue::oid;
    if is_restricted then
        return false;
    end if;
    case hint
        when 'head' then
            last_id := pg_sequence_last_value(pg_get_serial_sequence(queue::text, 'msg_id'::text)::regclass);
            value := least(value, coalesce(last_id, -9223372036854775808));
        when 'due' then
            value := least(value, pgmq._microseconds(moment));
        when 'sweep' then
            value := pgmq._pack_sweep(
                least(to_timestamp((value >> 16)::double precision / 1000::double precision), moment),
                least((value >> 10) & 63::bigint, 60::bigint)::integer,
                least(value & 1023::bigint, 1000::bigint)
            );
        else
            return false;
    end case;
    perform setval(sequence, value);
    return true;
end
$function$;
comment on function pgmq._keep_as_owner(regclass, text, bigint) is
'Internal: writes a hint of a queue for a role that may update the queue and has no privilege on the hint''s sequence.
Returns whether it did. What the hint says is kept within what is possible: no id above the last one given, no time in
the future.';

create function pgmq._keep(queue regclass, hint text, value bigint)
returns boolean
language plpgsql
as $function$
declare
    sequence constant regclass := pgmq._hint(queue, hint);
begin
    if sequence is null or row_security_active(queue::oid) then
        return false;
    elsif has_sequence_privilege(sequence::oid, 'UPDATE'::text) then
        perform setval(sequence, value);
        return true;
    end if;
    return pgmq._keep_as_owner(queue, hint, value);
end
$function$;
comment on function pgmq._keep(regclass, text, bigint) is
'Internal: writes a hint of a queue, and returns whether that was allowed.';

-- Plans as in the queue's own functions: by index, whatever the statistics say.
create function pgmq._sweep(queue regclass, moment timestamptz)
returns boolean
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $function$
declare
    head constant bigint := coalesce(
        pg_sequence_last_value(pgmq._hint(queue, 'head'::text)),
        -9223372036854775808
    );
    spread constant bigint := greatest(
        coalesce(pg_sequence_last_value(pgmq._hint(queue, 'sweep'::text)), 1::bigint) & 1023::bigint,
        1::bigint
    );
    started constant timestamptz := clock_timestamp();
    straggler bigint;
    earliest timestamptz;
    seconds double precision;
begin
    -- First, so that others leave it to this session. One that cannot tell them reads without hints.
    if not pgmq._keep(queue, 'sweep'::text, pgmq._pack_sweep(moment, 2, spread)) then
        return false;
    end if;
    -- A message that a running transaction holds is not hidden: it is taken.
    execute pg_catalog.format(
        $query$
            select
                (
                    select m.msg_id
                    from %1$s as m
                    where m.vt <= m.enqueued_at
                        and m.msg_id < $1
                        and m.vt <= $2
                    order by m.msg_id
                    limit 1
                    for update skip locked
                ),
                (
                    select d.vt
                    from %1$s as d
                    where d.vt > d.enqueued_at
                        and d.vt <= $2
                    order by d.vt
                    limit 1
                )
        $query$,
        queue::text
    )
    into straggler, earliest
    using head, moment;
    if straggler is not null then
        perform pgmq._keep(queue, 'head'::text, straggler);
    end if;
    perform pgmq._keep(queue, 'due'::text, pgmq._microseconds(coalesce(earliest, moment) - '10 ms'::interval));
    -- It stands for a second, and longer where it took long, so that it takes no more than a tenth of the time.
    seconds := date_part('epoch'::text, clock_timestamp() - started);
    perform pgmq._keep(
        queue,
        'sweep'::text,
        pgmq._pack_sweep(
            moment,
            least(greatest(ceil(10::double precision * seconds), 1::double precision), 60::double precision)::integer,
            spread
        )
    );
    return true;
end
$function$;
comment on function pgmq._sweep(regclass, timestamptz) is
'Internal: looks for messages of a queue that its hints hide, and lowers the hints to them. Returns whether the hints may
be relied on by this session.';

-- The margin is for messages whose ids are lower and whose transactions commit or roll back a little later; what comes
-- later still waits for a sweep.
create function pgmq._advance(queue regclass, moment timestamptz, margin bigint, lowest bigint)
returns void
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $function$
declare
    head constant bigint := coalesce(
        pg_sequence_last_value(pgmq._hint(queue, 'head'::text)),
        -9223372036854775808
    );
    due_hint constant bigint := pg_sequence_last_value(pgmq._hint(queue, 'due'::text));
    sweep constant bigint := pg_sequence_last_value(pgmq._hint(queue, 'sweep'::text));
    spread constant bigint := greatest(sweep & 1023::bigint, 1::bigint);
    snapshot constant pg_snapshot := pg_current_snapshot();
    -- A holder is known by the 32 lower bits of its transaction's id.
    horizon constant bigint := pg_snapshot_xmax(snapshot)::text::bigint + 2147483648::bigint;
    due timestamptz := '-infinity';
    earliest timestamptz;
    holders bigint;
    last_ready bigint;
    new_head bigint;
    new_spread bigint;
begin
    if row_security_active(queue::oid) then
        return;
    end if;
    if due_hint > -62135596800000000 and due_hint <= pgmq._microseconds(moment) then
        due := to_timestamp(due_hint::double precision * 0.000001::double precision);
    end if;
    -- The lowest is the first ready message that nobody holds. A crowd is eight transactions or more that hold messages
    -- at the front, taken and not yet committed.
    execute pg_catalog.format(
        $query$
            select l.msg_id,
                (
                    select d.vt
                    from %1$s as d
                    where d.vt > d.enqueued_at
                        and d.vt >= $3
                        and d.vt <= $2
                    order by d.vt
                    limit 1
                ),
                (
                    select pg_catalog.count(distinct m.xmax::text::bigint)
                    from %1$s as m
                    where m.vt <= m.enqueued_at
                        and m.msg_id >= $1
                        and m.msg_id < least(l.msg_id, 9223372036854774807) + $6
                        and m.vt <= $2
                        and m.xmax <> '0'::xid
                        and not pg_visible_in_snapshot(
                            ($5 - (($5 - m.xmax::text::bigint) & 4294967295))::text::xid8,
                            $4
                        )
                )
            from (
                select coalesce(
                    $7,
                    (
                        select m.msg_id
                        from %1$s as m
                        where m.vt <= m.enqueued_at
                            and m.msg_id >= $1
                            and m.vt <= $2
                            and (
                                m.xmax = '0'::xid
                                or pg_visible_in_snapshot(
                                    ($5 - (($5 - m.xmax::text::bigint) & 4294967295))::text::xid8,
                                    $4
                                )
                            )
                        order by m.msg_id
                        limit 1
                    )
                ) as msg_id
                offset 0
            ) as l
        $query$,
        queue::text
    )
    into lowest, earliest, holders
    using head, moment, due, snapshot, horizon, spread, lowest;
    perform pgmq._keep(queue, 'due'::text, pgmq._microseconds(coalesce(earliest, moment) - '10 ms'::interval));
    if lowest is null then
        return;
    end if;
    new_head := greatest(greatest(lowest, -9000000000000000000) - greatest(margin, 128::bigint), head);
    if new_head <> head then
        perform pgmq._keep(queue, 'head'::text, new_head);
    end if;

    -- Who began behind the last message would find none, and begin again at the head.
    if holders >= 8 then
        execute pg_catalog.format(
            $query$
                select m.msg_id
                from %1$s as m
                where m.vt <= m.enqueued_at
                    and m.msg_id > $1
                order by m.msg_id desc
                limit 1
            $query$,
            queue::text
        )
        into last_ready
        using lowest;
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
        perform pgmq._keep(queue, 'sweep'::text, (sweep - (sweep & 1023::bigint)) | new_spread);
    end if;
end
$function$;
comment on function pgmq._advance(regclass, timestamptz, bigint, bigint) is
'Internal: moves the hints of a queue up to what is there now: no ready message is free below "lowest", which it looks
for where it is NULL.';

create function pgmq._unhide(queue regclass, ready_id bigint, due timestamptz)
returns void
language plpgsql
as $function$
begin
    if ready_id < pg_sequence_last_value(pgmq._hint(queue, 'head'::text)) then
        perform pgmq._keep(queue, 'head'::text, ready_id);
    end if;
    if pgmq._microseconds(due) <= pg_sequence_last_value(pgmq._hint(queue, 'due'::text)) then
        perform pgmq._keep(queue, 'due'::text, pgmq._microseconds(due - '1 ms'::interval));
    end if;
end
$function$;
comment on function pgmq._unhide(regclass, bigint, timestamptz) is
'Internal: lowers the hints of a queue for a message that has become ready or due at once.';
