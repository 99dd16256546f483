-- A secret is found by a number that is made of its public id (see keynumbers.go). Where the primary key is such a number, SQLite goes down one tree of nothing but numbers, which has the
-- rows at its ends. A row begins with what proves a key. The unique number makes the public id unique. lookup is 0 for a secret that was not replaced.

-- in PostgreSQL:
create temp table key_numbers as select public_id as place, case when public_id = '' then 9223372036854775806
    else (('x' || encode(substring(sha256(convert_to(public_id, 'UTF8')) from 1 for 8), 'hex'))::bit(64) >> 2 << 1)::bigint end as lookup from keys;
create temp table secret_numbers as select public_id as place, case when public_id = '' then 9223372036854775806
    else (('x' || encode(substring(sha256(convert_to(public_id, 'UTF8')) from 1 for 8), 'hex'))::bit(64) >> 2 << 1)::bigint end as lookup from key_secrets where replaced;
-- in both:
create table keys_new (
    lookup          integer not null primary key,
    public_id       text    not null,
    hash            bytea   not null,
    pepper          bigint  not null,
    account         text    not null,
    id              text    not null,
    type            text    not null,
    last4           text    not null,
    imported        boolean not null,
    name            text    not null,
    description     text    not null,
    scopes          text    not null,
    allow_query     boolean not null,
    allowed_ips     text    not null,
    allowed_origins text    not null,
    metadata        text    not null,
    max_runs        bigint  not null,
    runs_used       bigint  not null,
    credited        bigint  not null,
    refill          text    not null,
    refill_at       bigint  not null,
    rate_limits     text    not null,
    rate_state      text    not null,
    max_concurrent  bigint  not null,
    limited         boolean not null,
    created_at      bigint  not null,
    created_by      text    not null,
    updated_at      bigint  not null,
    expires_at      bigint  not null,
    disabled_at     bigint  not null,
    disabled_by     text    not null,
    disabled_why    text    not null,
    revoked_at      bigint  not null,
    revoked_by      text    not null,
    revoked_why     text    not null,
    last_used_at    bigint  not null,
    revision        bigint  not null
);
insert into keys_new (lookup, public_id, hash, pepper, account, id, type, last4, imported, name, description, scopes, allow_query, allowed_ips, allowed_origins, metadata,
        max_runs, runs_used, credited, refill, refill_at, rate_limits, rate_state, max_concurrent, limited, created_at, created_by, updated_at, expires_at,
        disabled_at, disabled_by, disabled_why, revoked_at, revoked_by, revoked_why, last_used_at, revision)
    select n.lookup, k.public_id, k.hash, k.pepper, k.account, k.id, k.type, k.last4, k.imported, k.name, k.description, k.scopes, k.allow_query, k.allowed_ips, k.allowed_origins, k.metadata,
        k.max_runs, k.runs_used, k.credited, k.refill, k.refill_at, k.rate_limits, k.rate_state, k.max_concurrent, k.limited, k.created_at, k.created_by, k.updated_at, k.expires_at,
        k.disabled_at, k.disabled_by, k.disabled_why, k.revoked_at, k.revoked_by, k.revoked_why, k.last_used_at, k.revision
-- in SQLite:
    from key_numbers n cross join keys k on k.rowid = n.place order by n.lookup;
-- in PostgreSQL:
    from key_numbers n join keys k on k.public_id = n.place;
alter table key_secrets drop constraint key_secrets_key_id_fkey;
alter table key_origins drop constraint key_origins_key_id_fkey;
alter table key_running drop constraint key_running_key_id_fkey;
alter table key_usage drop constraint key_usage_key_id_fkey;
-- in both:
drop table keys;
alter table keys_new rename to keys;
create unique index keys_by_id on keys (id);
create index keys_by_account on keys (account, id);

alter table key_secrets add column lookup bigint not null default 0;
drop index key_secrets_replaced;
-- in SQLite:
update key_secrets set lookup = n.lookup from secret_numbers n where n.place = key_secrets.rowid;
-- in PostgreSQL:
alter index keys_new_pkey rename to keys_pkey;
alter table key_secrets add foreign key (key_id) references keys (id) on delete cascade;
alter table key_origins add foreign key (key_id) references keys (id) on delete cascade;
alter table key_running add foreign key (key_id) references keys (id) on delete cascade;
alter table key_usage add foreign key (key_id) references keys (id) on delete cascade;
update key_secrets set lookup = n.lookup from secret_numbers n where n.place = key_secrets.public_id;
-- in both:
create index key_secrets_replaced on key_secrets (lookup, public_id, key_id, account, hash, pepper, expires_at, replaced) where replaced;
drop table key_numbers;
drop table secret_numbers;
