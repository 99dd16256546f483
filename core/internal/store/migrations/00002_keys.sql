-- A key's texts. It has one, and for a while two after a rotation. The covering index is what a credential is looked up by.
create table key_secrets (
    public_id    text    not null primary key,
    key_id       text    not null references keys (id) on delete cascade,
    hash         bytea   not null,
    pepper       bigint  not null,
    last4        text    not null,
    imported     boolean not null,
    created_at   bigint  not null,
    created_by   text    not null,
    expires_at   bigint  not null,
    last_used_at bigint  not null,
    last_source  text    not null,
    last_agent   text    not null
);
insert into key_secrets (public_id, key_id, hash, pepper, last4, imported, created_at, created_by, expires_at, last_used_at, last_source, last_agent)
    select public_id, id, hash, pepper, last4, false, created_at, created_by, 0, 0, '', '' from keys;
create index key_secrets_by_key on key_secrets (key_id);

alter table keys add column imported boolean not null default false;
alter table keys add column allowed_ips text not null default '';
alter table keys add column allowed_origins text not null default '';
alter table keys add column metadata text not null default '';
alter table keys add column credited bigint not null default 0;
alter table keys add column refill text not null default '';
alter table keys add column refill_at bigint not null default 0;
alter table keys add column rate_limits text not null default '';
alter table keys add column rate_state text not null default '';
alter table keys add column max_concurrent bigint not null default 0;
-- Whether one statement is not enough to charge the key.
alter table keys add column limited boolean not null default false;
alter table keys add column updated_at bigint not null default 0;
alter table keys add column disabled_at bigint not null default 0;
alter table keys add column disabled_by text not null default '';
alter table keys add column disabled_why text not null default '';
alter table keys add column revision bigint not null default 1;
update keys set updated_at = created_at;

-- A key that no account has and no text proves. Its secret is what a look-up finds where there is nothing, because a look-up that finds something takes
-- another time than one that does not. Its hash is 32 bytes that are no hash.
insert into keys (id, account, type, public_id, hash, pepper, last4, name, description, scopes, allow_query, max_runs, runs_used, created_at, created_by,
        expires_at, revoked_at, revoked_by, revoked_why, last_used_at)
    values ('', '', 't', '', 'zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz', 0, '', '', '', '["run:*"]', false, 0, 0, 1, '', 0, 1, '', '', 0);
insert into key_secrets (public_id, key_id, hash, pepper, last4, imported, created_at, created_by, expires_at, last_used_at, last_source, last_agent)
    values ('', '', 'zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz', 0, '', false, 1, '', 0, 0, '', '');

-- Origins of web pages that keys may be used from, for answering a browser that asks before it sends the key.
create table key_origins (
    origin text not null,
    key_id text not null references keys (id) on delete cascade,
    primary key (origin, key_id)
);
create index key_origins_by_key on key_origins (key_id);

-- The runs that count against a key's max_concurrent_runs. A run that has ended leaves when the next one is admitted.
create table key_running (
    key_id text not null references keys (id) on delete cascade,
    run_id text not null,
    primary key (key_id, run_id)
);

-- How often keys were used, by day and by workflow, source and user agent.
create table key_usage (
    account text   not null,
    key_id  text   not null references keys (id) on delete cascade,
    day     bigint not null,
    kind    text   not null,
    value   text   not null,
    count   bigint not null,
    last_at bigint not null,
    primary key (key_id, day, kind, value)
);
create index key_usage_by_day on key_usage (day);

-- Why requests were refused, for whoever asks with the id of one.
create table refusals (
    request_id text   not null primary key,
    account    text   not null,
    time       bigint not null,
    chain      text   not null
);
create index refusals_by_time on refusals (time);
