-- Durable runs. timeout is in microseconds. run_limit is trigger.concurrency of the workflow when the run was admitted.
alter table runs add column durable   boolean not null default false;
alter table runs add column due_at    bigint  not null default 0;
alter table runs add column timeout   bigint  not null default 0;
alter table runs add column run_limit bigint  not null default 0;
alter table runs add column replay_of text    not null default '';
alter table runs add column span      text    not null default '';
-- What is to be recovered at a start, and counted for a limit. Inline runs are not in it, so they do not pay for it.
create index runs_open on runs (account, workflow_id, id) where durable and finished_at = 0;

-- A run that an Idempotency-Key still finds is not pruned.
create index idempotency_by_run on idempotency (account, run_id);

-- The events of durable runs, as many in a row as were committed together: seq is the first one's number, last the last one's.
create table run_events (
    account text   not null,
    run_id  text   not null,
    seq     bigint not null,
    last    bigint not null,
    body    text   not null,
    primary key (account, run_id, seq),
    foreign key (account, run_id) references runs (account, id) on delete cascade
);

-- The last run for each thing of the callers' business.
create table run_dedupe (
    account     text not null,
    workflow_id text not null,
    key         text not null,
    run_id      text not null,
    primary key (account, workflow_id, key),
    foreign key (account, run_id) references runs (account, id) on delete cascade
);
create index run_dedupe_by_run on run_dedupe (account, run_id);

create table callbacks (
    account    text   not null,
    id         text   not null,
    run_id     text   not null,
    url        text   not null,
    state      text   not null,
    attempts   bigint not null,
    next_at    bigint not null,
    created_at bigint not null,
    updated_at bigint not null,
    log        text   not null,
    primary key (account, id),
    foreign key (account, run_id) references runs (account, id) on delete cascade
);
create index callbacks_by_run on callbacks (account, run_id);
create index callbacks_due on callbacks (next_at) where next_at > 0;

-- Destinations that answered 410 and are not sent to any more.
create table callback_refusals (
    account text   not null,
    url     text   not null,
    at      bigint not null,
    primary key (account, url)
);

-- The schedules of the current version of each workflow, and how far each is.
create table schedules (
    account     text   not null,
    workflow_id text   not null,
    name        text   not null,
    spec        text   not null,
    since       bigint not null,
    last        bigint not null,
    primary key (account, workflow_id, name),
    foreign key (account, workflow_id) references workflows (account, id) on delete cascade
);

-- Every scheduled time that has a run. The primary key is what makes it one run.
create table schedule_ticks (
    account     text   not null,
    workflow_id text   not null,
    name        text   not null,
    tick        text   not null,
    at          bigint not null,
    run_id      text   not null,
    primary key (account, workflow_id, name, tick)
);
create index schedule_ticks_by_time on schedule_ticks (at);
