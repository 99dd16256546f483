-- Conventions. Times are microseconds since 1970 in UTC, 0 meaning "not". Text is never null; '' means "not". A null document
-- (input, overrides, output, steps) is absent, or kept in run_documents or run_steps because it is large. The types are those
-- that SQLite and PostgreSQL both take.

create table settings (
    name  text  not null primary key,
    value bytea not null
);

create table keys (
    id           text    not null primary key,
    account      text    not null,
    type         text    not null,
    public_id    text    not null unique,
    hash         bytea   not null,
    pepper       bigint  not null,
    last4        text    not null,
    name         text    not null,
    description  text    not null,
    scopes       text    not null,
    allow_query  boolean not null,
    max_runs     bigint  not null,
    runs_used    bigint  not null,
    created_at   bigint  not null,
    created_by   text    not null,
    expires_at   bigint  not null,
    revoked_at   bigint  not null,
    revoked_by   text    not null,
    revoked_why  text    not null,
    last_used_at bigint  not null
);
create index keys_by_account on keys (account, id);

create table workflows (
    account    text    not null,
    id         text    not null,
    slug       text    not null,
    title      text    not null,
    aliases    text    not null,
    enabled    boolean not null,
    version    bigint  not null,
    digest     text    not null,
    created_at bigint  not null,
    updated_at bigint  not null,
    primary key (account, id)
);

-- Every name a workflow answers to: its id, its slug and its aliases, which therefore cannot collide within an account.
create table workflow_names (
    account     text not null,
    name        text not null,
    workflow_id text not null,
    primary key (account, name),
    foreign key (account, workflow_id) references workflows (account, id)
);
create index workflow_names_by_workflow on workflow_names (account, workflow_id);

create table versions (
    account     text   not null,
    workflow_id text   not null,
    version     bigint not null,
    digest      text   not null,
    created_at  bigint not null,
    created_by  text   not null,
    definition  text   not null,
    source      text   not null,
    primary key (account, workflow_id, version),
    foreign key (account, workflow_id) references workflows (account, id)
);

create table modules (
    account    text   not null,
    digest     text   not null,
    size       bigint not null,
    created_at bigint not null,
    body       bytea  not null,
    primary key (account, digest)
);

create table runs (
    account          text   not null,
    id               text   not null,
    status           text   not null,
    workflow_id      text   not null,
    workflow_slug    text   not null,
    workflow_version bigint not null,
    workflow_digest  text   not null,
    trigger_type     text   not null,
    trigger_route    text   not null,
    principal        text   not null,
    key_id           text   not null,
    key_name         text   not null,
    key_hint         text   not null,
    backend          text   not null,
    source_ip        text   not null,
    created_at       bigint not null,
    started_at       bigint not null,
    finished_at      bigint not null,
    deadline_at      bigint not null,
    attempt          bigint not null,
    trace_id         text   not null,
    request_id       text   not null,
    metadata         text   not null,
    error            text   not null,
    attributes       text   not null,
    input            text,
    overrides        text,
    output           text,
    steps            text,
    primary key (account, id)
);
-- The trace id is there to be scanned: trace ids are random, and an index that starts with them would touch a page of its own for
-- every run, which was measured as a quarter of the cost of an admission.
create index runs_by_workflow on runs (account, workflow_id, id, trace_id);
create index runs_by_key on runs (key_id, id) where key_id <> '';
create index runs_not_succeeded on runs (status, account, id) where status <> 'succeeded';

-- Documents too large to be rewritten with their run.
create table run_documents (
    account text not null,
    run_id  text not null,
    part    text not null,
    body    text not null,
    primary key (account, run_id, part),
    foreign key (account, run_id) references runs (account, id) on delete cascade
);

-- The steps of runs whose steps are too large to be one document in the run.
create table run_steps (
    account  text   not null,
    run_id   text   not null,
    position bigint not null,
    step     text   not null,
    body     text   not null,
    primary key (account, run_id, position),
    foreign key (account, run_id) references runs (account, id) on delete cascade
);

create table run_metadata (
    account text not null,
    name    text not null,
    value   text not null,
    run_id  text not null,
    primary key (account, name, value, run_id),
    foreign key (account, run_id) references runs (account, id) on delete cascade
);
create index run_metadata_by_run on run_metadata (account, run_id);

create table idempotency (
    account     text   not null,
    principal   text   not null,
    workflow_id text   not null,
    key         text   not null,
    fingerprint text   not null,
    run_id      text   not null,
    expires_at  bigint not null,
    primary key (account, principal, workflow_id, key)
);
create index idempotency_by_expiry on idempotency (expires_at);

-- The type integer makes seq the row's own number in SQLite, which saves an index. PostgreSQL needs it widened to bigint.
create table audit (
    seq        integer not null primary key,
    id         text   not null,
    account    text   not null,
    time       bigint not null,
    actor      text   not null,
    key_id     text   not null,
    source_ip  text   not null,
    action     text   not null,
    object     text   not null,
    outcome    text   not null,
    reason     text   not null,
    request_id text   not null,
    trace_id   text   not null,
    count      bigint not null
);
create index audit_by_account on audit (account, seq);
create index audit_by_object on audit (object, seq);

-- Secrets of an account. The value is sealed with a key that is not in the database.
create table secrets (
    account    text   not null,
    name       text   not null,
    sealed     bytea  not null,
    created_at bigint not null,
    updated_at bigint not null,
    updated_by text   not null,
    primary key (account, name)
);

-- What nodes keep between runs, by workflow, and how much that is.
create table kv (
    account     text  not null,
    workflow_id text  not null,
    name        text  not null,
    value       bytea not null,
    primary key (account, workflow_id, name)
);

create table kv_usage (
    account     text   not null,
    workflow_id text   not null,
    names       bigint not null,
    bytes       bigint not null,
    primary key (account, workflow_id)
);
