-- A deleted workflow keeps its row, without a name, for as long as there are runs of it: they name it, and those that have not ended still need its versions.
alter table workflows add column deleted_at bigint not null default 0;
create index workflows_deleted on workflows (account, id) where deleted_at > 0;
