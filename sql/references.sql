-- The bindings and throttles of a queue go with its row of pgmq.meta, and need it, as with a foreign key. That is not
-- what they have: pg_restore --jobs loads the tables of an extension in any order, with their constraints in place.
-- As foreign keys do, the triggers work with the rights of the tables' owner.
create function pgmq._check_queue()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    -- A dump turns this off, for what comes before that to which it refers.
    if current_setting('check_function_bodies')::boolean then
        perform
        from pgmq.meta as m
        where m.queue_name = new.queue_name
        for key share;
        if not found then
            raise exception 'pgmq: queue % does not exist', quote_ident(new.queue_name)
                using errcode = 'foreign_key_violation',
                    hint = 'The name must be spelled as in pgmq.meta.';
        end if;
    end if;
    return new;
end
$function$;
comment on function pgmq._check_queue() is
'Internal: the trigger that refuses bindings and throttles of an unknown queue.';
revoke execute on function pgmq._check_queue() from public;

create function pgmq._follow_queue()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    if tg_op = 'UPDATE' then
        update pgmq.topic_bindings
        set queue_name = new.queue_name
        where queue_name = old.queue_name;
        update pgmq.notify_insert_throttle
        set queue_name = new.queue_name
        where queue_name = old.queue_name;
    else
        delete from pgmq.topic_bindings
        where queue_name = old.queue_name;
        delete from pgmq.notify_insert_throttle
        where queue_name = old.queue_name;
    end if;
    return null;
end
$function$;
comment on function pgmq._follow_queue() is 'Internal: the trigger by which bindings and throttles follow their queue.';
revoke execute on function pgmq._follow_queue() from public;

create trigger check_queue
before insert or update of queue_name on pgmq.topic_bindings
for each row execute function pgmq._check_queue();

create trigger check_queue
before insert or update of queue_name on pgmq.notify_insert_throttle
for each row execute function pgmq._check_queue();

create trigger follow_queue
after delete or update of queue_name on pgmq.meta
for each row execute function pgmq._follow_queue();

-- These functions, and that of pgmq.topic_version, write the lists with the rights of their owner. With them would run
-- what another role could attach to a list: a trigger, or the casts of a foreign key. Default privileges may have given
-- these rights to others, and more of them on the internal tables, which others may read and neither write nor lock.
do $do$
declare
    granted record;
begin
    for granted in
        select distinct c.oid::regclass as list,
            c.relname in ('topic_version', 'dispatch_lock') as is_internal,
            case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
        from pg_class as c
        cross join lateral (
            select c.relacl
            union all
            select t.attacl
            from pg_attribute as t
            where t.attrelid = c.oid
        ) as l (acl)
        cross join lateral aclexplode(l.acl) as a
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relname in ('meta', 'topic_bindings', 'topic_version', 'notify_insert_throttle', 'dispatch_lock')
            and (
                a.privilege_type in ('TRIGGER', 'REFERENCES')
                or c.relname in ('topic_version', 'dispatch_lock') and a.privilege_type <> 'SELECT'
            )
            and a.grantee <> c.relowner
    loop
        execute format(
            'revoke %s on table %s from %s cascade',
            case when granted.is_internal then 'all' else 'trigger, references' end,
            granted.list,
            granted.grantee
        );
    end loop;
    grant select on table pgmq.topic_version, pgmq.dispatch_lock to public;
end
$do$;
