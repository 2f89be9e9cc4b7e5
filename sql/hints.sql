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
-- head and due are raised by the queue's function advance, which one read in 32 calls, and lowered by _sweep and by _unhide. A sweep looks
-- below both for what a late commit, a rollback or a direct update left there. What a session may not see is not gone:
-- one that row security restricts writes no hint.

create function pgmq._due_before(moment timestamptz)
returns bigint
stable
language sql
as $function$
    select greatest(
        (
            date_part('epoch'::text, greatest(moment, '4714-11-24 00:00:00+00 BC'::timestamptz))
                * 1000000::double precision
        )::bigint - 10000,
        -210866803200000000
    )
$function$;
comment on function pgmq._due_before(timestamptz) is
'Internal: what the hint due says where nothing was left that was due before this time: 10 ms less, in microseconds since
1970, and not less than the earliest time there is.';

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

-- These two are single expressions, so that PL/pgSQL takes them in without a call.
create function pgmq._stands(sweep bigint, due bigint, microseconds bigint)
returns boolean
immutable
language sql
as $function$
    select coalesce(
        microseconds / 1000::bigint - (sweep >> 16) between -1000 and ((sweep >> 10) & 63::bigint) * 1000::bigint
        and due <= microseconds,
        false
    )
$function$;
comment on function pgmq._stands(bigint, bigint, bigint) is
'Internal: whether the last sweep still stands at this time. A sweep or a hint from the future is of a clock that was
ahead: it says nothing.';

create function pgmq._time_of(due bigint)
returns timestamptz
immutable
language sql
as $function$
    select to_timestamp(due::double precision * 0.000001::double precision)
$function$;
comment on function pgmq._time_of(bigint) is 'Internal: the hint due as a time.';

-- The caller is the session's role, which owns neither the sequence nor this function: it changes nothing unless the
-- sequence is the hint of a queue that it may update and sees all of, and what it says is possible.
create function pgmq._keep_as_owner(queue regclass, hint regclass, value bigint)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    caller constant name := coalesce(nullif(current_setting('role'::text), 'none'::text), session_user::text)::name;
    moment constant timestamptz := clock_timestamp();
    kind text;
begin
    if not coalesce(has_table_privilege(caller, queue::oid, 'UPDATE'::text), false) then
        return false;
    end if;
    -- A sequence that the table owns belongs to the table's owner.
    select split_part(s.relname::text, '$'::text, -1)
    into kind
    from pg_class as s
    join pg_depend as d
        on d.classid = 'pg_class'::regclass::oid
        and d.objid = s.oid
        and d.refclassid = 'pg_class'::regclass::oid
        and d.deptype = 'a'::"char"
    join pg_class as q
        on q.oid = d.refobjid
    where s.oid = hint::oid
        and s.relkind = 'S'::"char"
        and q.oid = queue::oid
        and q.relnamespace = 'pgmq'::regnamespace::oid
        and (
            not q.relrowsecurity
            or exists (
                select
                from pg_roles as r
                where r.rolname = caller
                    and (r.rolsuper or r.rolbypassrls)
            )
        );
    if kind = 'head' then
        value := least(
            value,
            coalesce(
                pg_sequence_last_value(pg_get_serial_sequence(queue::text, 'msg_id'::text)::regclass),
                -9223372036854775808
            )
        );
    elsif kind = 'due' then
        value := greatest(least(value, pgmq._due_before(moment)), -210866803200000000);
    elsif kind = 'sweep' then
        value := pgmq._pack_sweep(
            least(to_timestamp((value >> 16)::double precision / 1000::double precision), moment),
            greatest(least((value >> 10) & 63::bigint, 60::bigint), 1::bigint)::integer,
            greatest(least(value & 1023::bigint, 1000::bigint), 1::bigint)
        );
    else
        return false;
    end if;
    perform setval(hint, value);
    return true;
end
$function$;
comment on function pgmq._keep_as_owner(regclass, regclass, bigint) is
'Internal: writes a hint of a queue for a role that may update the queue and has no privilege on the hint''s sequence.
Returns whether it did. What the hint says is kept within what is possible: no id above the last one given, no time in
the future.';

create function pgmq._keep(queue regclass, hint regclass, value bigint)
returns boolean
language plpgsql
as $function$
begin
    if row_security_active(queue::oid) then
        return false;
    elsif has_sequence_privilege(hint::oid, 'UPDATE'::text) then
        perform setval(hint, value);
        return true;
    end if;
    return pgmq._keep_as_owner(queue, hint, value);
end
$function$;
comment on function pgmq._keep(regclass, regclass, bigint) is
'Internal: writes a hint of a queue, and returns whether that was allowed.';

-- The name of a queue's own sequences begins as that of its table, or with what shortens it.
create function pgmq._hint(queue regclass, hint text)
returns regclass
stable
language plpgsql
as $function$
begin
    return to_regclass(
        'pgmq.'::text || quote_ident(
            pgmq._identifier((select c.relname::text from pg_catalog.pg_class as c where c.oid = queue::oid), 49)
                || '$'::text
                || hint
        )
    );
end
$function$;
comment on function pgmq._hint(regclass, text) is 'Internal: the sequence that holds a hint of a queue.';

-- Plans as in the queue's own functions: by index, whatever the statistics say.
create function pgmq._sweep(queue regclass, moment timestamptz)
returns boolean
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $function$
declare
    sweep_hint constant regclass := pgmq._hint(queue, 'sweep'::text);
    head_hint constant regclass := pgmq._hint(queue, 'head'::text);
    due_hint constant regclass := pgmq._hint(queue, 'due'::text);
    spread constant bigint := greatest(
        coalesce(pg_sequence_last_value(sweep_hint), 1::bigint) & 1023::bigint,
        1::bigint
    );
    started constant timestamptz := clock_timestamp();
    straggler bigint;
    earliest timestamptz;
    seconds double precision;
begin
    -- First, so that others leave it to this session. One that cannot tell them reads without hints.
    if not pgmq._keep(queue, sweep_hint, pgmq._pack_sweep(moment, 2, spread)) then
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
    using pg_sequence_last_value(head_hint), moment;
    if straggler is not null then
        perform pgmq._keep(queue, head_hint, straggler);
    end if;
    perform pgmq._keep(queue, due_hint, pgmq._due_before(coalesce(earliest, moment)));
    -- It stands for a second, and longer where it took long, so that it takes no more than a tenth of the time.
    seconds := ceil(10::double precision * date_part('epoch'::text, clock_timestamp() - started));
    perform pgmq._keep(
        queue,
        sweep_hint,
        pgmq._pack_sweep(moment, least(greatest(seconds, 1::double precision), 60::double precision)::integer, spread)
    );
    return true;
end
$function$;
comment on function pgmq._sweep(regclass, timestamptz) is
'Internal: looks for messages of a queue that its hints hide, and lowers the hints to them. Returns whether the hints may
be relied on by this session.';

create function pgmq._unhide(queue regclass, ready_id bigint, visible_at timestamptz)
returns void
language plpgsql
as $function$
declare
    head_hint constant regclass := pgmq._hint(queue, 'head'::text);
    due_hint constant regclass := pgmq._hint(queue, 'due'::text);
begin
    if ready_id < pg_sequence_last_value(head_hint) then
        perform pgmq._keep(queue, head_hint, ready_id);
    end if;
    if pgmq._due_before(visible_at) < pg_sequence_last_value(due_hint) then
        perform pgmq._keep(queue, due_hint, pgmq._due_before(visible_at));
    end if;
end
$function$;
comment on function pgmq._unhide(regclass, bigint, timestamptz) is
'Internal: lowers the hints of a queue for a message that has become ready or due at once.';
