-- The URL of a webhook names a workflow by its id alone.
create index workflows_by_id on workflows (id);
