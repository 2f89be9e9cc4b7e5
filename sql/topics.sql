-- Topics: bindings of patterns to queues, and sending by routing key. Which queues a key reaches Python finds
-- (topics.py).

-- "what" names the argument in the errors, "allowed" is for people, "refused" is a regular expression.
create function pgmq._check_topic_text(what text, value text, allowed text, refused text)
returns void
immutable
language plpgsql
as $function$
declare
    problem text;
begin
    problem := case
        when coalesce(value, '') = '' then 'cannot be NULL or empty'
        when length(value) > 255
            then pg_catalog.format('length cannot exceed 255 characters, got %s characters', length(value))
        when value collate "C" ~ refused then 'contains invalid characters'
        when starts_with(value, '.') then 'cannot start with a dot'
        when right(value, 1) = '.' then 'cannot end with a dot'
        when strpos(value, '..') > 0 then 'cannot contain consecutive dots'
        when strpos(value, '**') > 0 then 'cannot contain consecutive stars (**)'
        when strpos(value, '##') > 0 then 'cannot contain consecutive hashes (##)'
        when strpos(value, '*#') > 0 or strpos(value, '#*') > 0 then 'cannot contain adjacent wildcards (*# or #*)'
    end;
    if length(value) between 1 and 255 then
        problem := problem || '. Got: '::text || value;
    end if;
    if problem is not null then
        raise exception 'pgmq: % %', what, problem
            using hint = pg_catalog.format('It consists of segments separated by dots; allowed are %s.', allowed);
    end if;
end
$function$;
comment on function pgmq._check_topic_text(text, text, text, text) is
'Internal: what routing keys and patterns have in common.';

create function pgmq.validate_routing_key(routing_key text)
returns boolean
immutable
language plpgsql
as $function$
begin
    if length(routing_key) <= 255 and routing_key collate "C" ~ '^[a-zA-Z0-9_-]+([.][a-zA-Z0-9_-]+)*$' then
        return true;
    end if;
    perform pgmq._check_topic_text(
        'routing_key', routing_key, 'ASCII letters, digits, dots, hyphens and underscores', '[^a-zA-Z0-9._-]'
    );
    return true;
end
$function$;
comment on function pgmq.validate_routing_key(text) is
'Returns true for a routing key: 1 to 255 ASCII letters, digits, dots, hyphens and underscores, no dot at either end,
no two dots together. Errors: P0001 for anything else, with a message for each breach.
Privileges: none.';

create function pgmq.validate_topic_pattern(pattern text)
returns boolean
immutable
language plpgsql
as $function$
begin
    perform pgmq._check_topic_text(
        'pattern', pattern, 'ASCII letters, digits, dots, hyphens, underscores, * and #', '[^a-zA-Z0-9._*#-]'
    );
    return true;
end
$function$;
comment on function pgmq.validate_topic_pattern(text) is
'Returns true for a pattern: as a routing key, and with * for one or more characters other than a dot, and # for any
characters, none and dots included; no two of these stand together.
Errors: P0001 for anything else, with a message for each breach. Privileges: none.';

alter table pgmq.topic_bindings
add constraint topic_bindings_pattern_check check (pgmq.validate_topic_pattern(pattern));

-- Keeps pgmq.topic_version. SECURITY DEFINER, so that whoever may edit the bindings needs no privilege on that table,
-- where a wrong row would break the routing of others.
create function pgmq._change_topic_version()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    if tg_when = 'BEFORE' then
        insert into pgmq.topic_version (is_open)
        values (true);
        return null;
    end if;

    if tg_level = 'STATEMENT' then
        -- Only this transaction's open rows can be seen; which of them goes is all the same.
        delete from pgmq.topic_version
        where version = (
            select version
            from pgmq.topic_version
            where is_open
            limit 1
        );
        if tg_op <> 'TRUNCATE' then
            if not exists (select from changed) then
                return null;
            end if;
        end if;
    end if;
    -- Rows that a concurrent change is removing are left to it. In REPEATABLE READ and above such a row would be an
    -- error, so there rows are removed only where they have become many.
    if current_setting('transaction_isolation') in ('read committed', 'read uncommitted')
        or (select count(*) > 100 from pgmq.topic_version)
    then
        delete from pgmq.topic_version
        where version = any (
            array(
                select version
                from pgmq.topic_version
                where not is_open
                for update skip locked
            )
        );
    end if;
    insert into pgmq.topic_version (is_open)
    values (false);
    return null;
end
$function$;
comment on function pgmq._change_topic_version() is
'Internal: the trigger of pgmq.topic_bindings that keeps pgmq.topic_version.';
revoke execute on function pgmq._change_topic_version() from public;

create trigger version_open
before insert or update or delete or truncate on pgmq.topic_bindings
for each statement execute function pgmq._change_topic_version();

create trigger version_insert
after insert on pgmq.topic_bindings
referencing new table as changed
for each statement execute function pgmq._change_topic_version();

create trigger version_update
after update on pgmq.topic_bindings
referencing new table as changed
for each statement execute function pgmq._change_topic_version();

create trigger version_delete
after delete on pgmq.topic_bindings
referencing old table as changed
for each statement execute function pgmq._change_topic_version();

create trigger version_truncate
after truncate on pgmq.topic_bindings
for each statement execute function pgmq._change_topic_version();

-- For logical replication, which changes rows without a statement.
create trigger version_replicated
after insert or update or delete on pgmq.topic_bindings
for each row execute function pgmq._change_topic_version();

-- "Always" is with session_replication_role = replica, too, and "replica" is only there.
alter table pgmq.topic_bindings
enable always trigger version_open,
enable always trigger version_insert,
enable always trigger version_update,
enable always trigger version_delete,
enable always trigger version_truncate,
enable replica trigger version_replicated;

create function pgmq._check_not_empty(what text, value text)
returns void
language plpgsql
as $function$
begin
    if coalesce(value, '') = '' then
        raise exception 'pgmq: % cannot be NULL or empty', what;
    end if;
end
$function$;
comment on function pgmq._check_not_empty(text, text) is 'Internal: refuses an argument that is NULL or empty.';

create function pgmq.bind_topic(pattern text, queue_name text)
returns void
language plpgsql
as $function$
#variable_conflict use_column
declare
    bound_queue text;
begin
    perform pgmq.validate_topic_pattern($1);
    perform pgmq._check_not_empty('queue_name'::text, $2);
    perform pgmq.validate_queue_name($2);
    -- The spelling of pgmq.meta is what the table wants.
    select m.queue_name
    into bound_queue
    from pgmq.meta as m
    where m.queue_name::text = $2
        or lower(m.queue_name::text) = lower($2);
    if bound_queue is null then
        raise exception 'pgmq: queue % does not exist', quote_ident($2)
            using hint = pg_catalog.format('Create it first: select pgmq.create(%L);', $2);
    end if;
    insert into pgmq.topic_bindings (pattern, queue_name)
    values ($1, bound_queue)
    on conflict do nothing;
end
$function$;
comment on function pgmq.bind_topic(text, text) is
'Binds a pattern to a queue: what is sent by send_topic with a routing key that matches goes there. Binding twice
changes nothing. Errors: as validate_topic_pattern and validate_queue_name, P0001 no such queue.
Privileges: SELECT on pgmq.meta, SELECT and INSERT on pgmq.topic_bindings.';

create function pgmq.unbind_topic(pattern text, queue_name text)
returns boolean
language plpgsql
as $function$
#variable_conflict use_column
begin
    perform pgmq._check_not_empty('pattern'::text, $1);
    perform pgmq._check_not_empty('queue_name'::text, $2);
    perform pgmq.validate_queue_name($2);
    delete from pgmq.topic_bindings
    where pattern = $1
        and lower(queue_name) = lower($2);
    return found;
end
$function$;
comment on function pgmq.unbind_topic(text, text) is
'Removes the binding of a pattern to a queue, and returns whether there was one.
Errors: P0001 an argument that is NULL or empty, as validate_queue_name. Privileges: SELECT and DELETE on
pgmq.topic_bindings.';

create function pgmq.list_topic_bindings()
returns table (pattern text, queue_name text, bound_at timestamptz, compiled_regex text)
stable
language sql
as $function$
    select b.pattern, b.queue_name, b.bound_at, b.compiled_regex
    from pgmq.topic_bindings as b
    order by b.bound_at desc, b.pattern, b.queue_name
$function$;
comment on function pgmq.list_topic_bindings() is
'Lists the bindings, the newest first. Privileges: SELECT on pgmq.topic_bindings.';

create function pgmq.list_topic_bindings(queue_name text)
returns table (pattern text, queue_name text, bound_at timestamptz, compiled_regex text)
stable
language sql
as $function$
    select pgmq.validate_queue_name($1);

    select b.pattern, b.queue_name, b.bound_at, b.compiled_regex
    from pgmq.topic_bindings as b
    where lower(b.queue_name) = lower($1)
    order by b.bound_at desc, b.pattern, b.queue_name
$function$;
comment on function pgmq.list_topic_bindings(text) is
'Lists the bindings of a queue, the newest first; none where there is no such queue.
Errors: as validate_queue_name. Privileges: SELECT on pgmq.topic_bindings.';

create function pgmq.test_routing(routing_key text)
returns table (pattern text, queue_name text, compiled_regex text)
stable
language plpgsql
as $function$
#variable_conflict use_column
declare
    -- Variables, here and below: as part of the query the function would be called once more to plan it.
    patterns text[];
begin
    perform pgmq.validate_routing_key(routing_key);
    patterns := pgmq._matching_patterns(routing_key);
    return query
        select b.pattern, b.queue_name, b.compiled_regex
        from pgmq.topic_bindings as b
        where b.pattern = any (patterns)
        order by b.pattern, b.queue_name;
end
$function$;
comment on function pgmq.test_routing(text) is
'Lists the bindings whose pattern matches the routing key; a queue with several of them still gets a message once.
Errors: as validate_routing_key. Privileges: SELECT on pgmq.topic_bindings.';

-- A dump is restored in parts, and what comes before its queue is not refused: a binding of a queue that never came must
-- not stop the messages to the others.
create function pgmq._is_gone(queue_name text)
returns boolean
language plpgsql
as $function$
begin
    if to_regclass('pgmq.'::text || quote_ident(lower('q_'::text || queue_name))) is not null
        or pgmq._table_exists(pgmq._identifier('q_'::text || queue_name, 63))
    then
        return false;
    end if;
    raise warning 'pgmq: queue % is bound to topics and does not exist', quote_ident(queue_name)
        using hint = 'It gets no messages. Remove its bindings from pgmq.topic_bindings, or create it.';
    return true;
end
$function$;
comment on function pgmq._is_gone(text) is
'Internal: whether a queue that is bound to topics does not exist, with a warning.';

create function pgmq.send_topic(routing_key text, msg jsonb, headers jsonb, delay integer)
returns integer
language plpgsql
as $function$
declare
    queues text[];
    queue text;
    sent integer := 0;
begin
    perform pgmq.validate_routing_key(routing_key);
    if msg is null then
        raise exception 'pgmq: msg cannot be NULL'
            using hint = 'A JSON null is a message: ''null''.';
    elsif delay is null then
        perform pgmq._required('delay'::text);
    elsif delay < 0 then
        raise exception 'pgmq: delay cannot be negative, got: %', delay
            using hint = 'The delay is in seconds; 0 means no delay.';
    end if;
    queues := pgmq._matching_queues(routing_key);
    foreach queue in array queues loop
        continue when pgmq._is_gone(queue);
        perform pgmq.send(queue, msg, headers, delay);
        sent := sent + 1;
    end loop;
    return sent;
end
$function$;
comment on function pgmq.send_topic(text, jsonb, jsonb, integer) is
'Sends a message with headers and a delay in seconds, after which it becomes visible. More: send_topic(text, jsonb).';

create function pgmq.send_topic(routing_key text, msg jsonb)
returns integer
language plpgsql
as $function$
begin
    return pgmq.send_topic(routing_key, msg, null, 0);
end
$function$;
comment on function pgmq.send_topic(text, jsonb) is
'Sends a message to each queue that has a pattern matching the routing key, once to each however many patterns match,
and returns how many queues that were: all of them get it or none. The other forms take headers and a delay in
seconds.
Errors: as validate_routing_key, P0001 a NULL message or a negative delay, 22004 a NULL delay.
Privileges: SELECT on pgmq.topic_bindings, INSERT on the tables of the queues.';

create function pgmq.send_topic(routing_key text, msg jsonb, delay integer)
returns integer
language plpgsql
as $function$
begin
    return pgmq.send_topic(routing_key, msg, null, delay);
end
$function$;
comment on function pgmq.send_topic(text, jsonb, integer) is
'Sends a message with a delay in seconds, after which it becomes visible. More: send_topic(text, jsonb).';

create function pgmq.send_batch_topic(routing_key text, msgs jsonb[], headers jsonb[], delay timestamptz)
returns table (queue_name text, msg_id bigint)
language plpgsql
as $function$
#variable_conflict use_column
declare
    queues text[];
    queue text;
begin
    perform pgmq.validate_routing_key(routing_key);
    perform pgmq._check_batch(msgs, headers);
    if delay is null then
        perform pgmq._required('delay'::text);
    end if;
    queues := pgmq._matching_queues(routing_key);
    foreach queue in array queues loop
        continue when pgmq._is_gone(queue);
        return query
            select queue, s.msg_id
            from pgmq.send_batch(queue, msgs, headers, delay) as s (msg_id);
    end loop;
end
$function$;
comment on function pgmq.send_batch_topic(text, jsonb[], jsonb[], timestamptz) is
'Sends messages with headers, one element a message, and the time at which they become visible.
More: send_batch_topic(text, jsonb[]).';

create function pgmq.send_batch_topic(routing_key text, msgs jsonb[])
returns table (queue_name text, msg_id bigint)
language plpgsql
as $function$
begin
    return query
        select s.queue_name, s.msg_id
        from pgmq.send_batch_topic(routing_key, msgs, null::jsonb[], now()) as s;
end
$function$;
comment on function pgmq.send_batch_topic(text, jsonb[]) is
'Sends messages to each queue that has a pattern matching the routing key, once to each however many patterns match, and
returns the queue and the id of every message: all of them or none.
The other forms take headers, one element a message, and a delay for all: in seconds, or the time at which they become
visible. Errors: as validate_routing_key; as send_batch, even where no queue matches.
Privileges: SELECT on pgmq.topic_bindings, INSERT on the tables of the queues';

create function pgmq.send_batch_topic(routing_key text, msgs jsonb[], headers jsonb[])
returns table (queue_name text, msg_id bigint)
language plpgsql
as $function$
begin
    return query
        select s.queue_name, s.msg_id
        from pgmq.send_batch_topic(routing_key, msgs, headers, now()) as s;
end
$function$;
comment on function pgmq.send_batch_topic(text, jsonb[], jsonb[]) is
'Sends messages with headers, one element a message. More: send_batch_topic(text, jsonb[]).';

create function pgmq.send_batch_topic(routing_key text, msgs jsonb[], delay integer)
returns table (queue_name text, msg_id bigint)
language plpgsql
as $function$
begin
    return query
        select s.queue_name, s.msg_id
        from pgmq.send_batch_topic(
            routing_key,
            msgs,
            null::jsonb[],
            pgmq._visible_at(delay)
        ) as s;
end
$function$;
comment on function pgmq.send_batch_topic(text, jsonb[], integer) is
'Sends messages with a delay in seconds, after which they become visible. More: send_batch_topic(text, jsonb[]).';

create function pgmq.send_batch_topic(routing_key text, msgs jsonb[], delay timestamptz)
returns table (queue_name text, msg_id bigint)
language plpgsql
as $function$
begin
    return query
        select s.queue_name, s.msg_id
        from pgmq.send_batch_topic(routing_key, msgs, null::jsonb[], delay) as s;
end
$function$;
comment on function pgmq.send_batch_topic(text, jsonb[], timestamptz) is
'Sends messages with the time at which they become visible. More: send_batch_topic(text, jsonb[]).';

create function pgmq.send_batch_topic(routing_key text, msgs jsonb[], headers jsonb[], delay integer)
returns table (queue_name text, msg_id bigint)
language plpgsql
as $function$
begin
    return query
        select s.queue_name, s.msg_id
        from pgmq.send_batch_topic(
            routing_key,
            msgs,
            headers,
            pgmq._visible_at(delay)
        ) as s;
end
$function$;
comment on function pgmq.send_batch_topic(text, jsonb[], jsonb[], integer) is
'Sends messages with headers, one element a message, and a delay in seconds, after which they become visible.
More: send_batch_topic(text, jsonb[]).';
