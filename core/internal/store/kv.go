package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"

	"github.com/keyfire/keyfire/core"
)

// Bounds of what the nodes of one workflow keep. They are part of the node ABI.
const (
	maxKVNames = 10_000
	maxKVBytes = 16 << 20 // names and values together
)

const (
	sqlKV       = `select value from kv where account = $1 and workflow_id = $2 and name = $3`
	sqlKVDelete = `delete from kv where account = $1 and workflow_id = $2 and name = $3`
	sqlKVPut    = `insert into kv (account, workflow_id, name, value) values ($1, $2, $3, $4)
		on conflict (account, workflow_id, name) do update set value = excluded.value`
	// sqlKVUsage also says whether the account was deleted: what is purged must not come back by a run that executes meanwhile.
	sqlKVUsage = `select coalesce(max(names), 0), coalesce(max(bytes), 0), exists (select 1 from accounts where id = $1 and deleted_at > 0)
		from kv_usage where account = $1 and workflow_id = $2`
	sqlKVUsagePut = `insert into kv_usage (account, workflow_id, names, bytes) values ($1, $2, $3, $4)
		on conflict (account, workflow_id) do update set names = excluded.names, bytes = excluded.bytes`
)

// Get returns a value that the nodes of a workflow keep, CodeNotFound when there is none.
func (s *Store) Get(ctx context.Context, account, workflow, key string) (value []byte, err error) {
	return value, found(s.row(ctx, sqlKV, account, workflow, key).Scan(&value), "value")
}

// Swap sets a value that the nodes of a workflow keep, or removes it for a nil one. With check set it does so only if the value is old, nil
// being none, and reports whether it was. CodeQuotaExhausted when the workflow keeps as much as it may; what makes it less is always taken. CodeNotFound
// when the account was deleted.
func (s *Store) Swap(ctx context.Context, account, workflow, key string, value []byte, check bool, old []byte) (swapped bool, err error) {
	err = s.write(ctx, &change{name: "keep value", lane: intake, account: account, size: int64(len(key) + len(value))}, func(t *tx) error {
		swapped = false
		var now []byte
		had := true
		switch err := t.row(sqlKV, account, workflow, key).Scan(&now); {
		case errors.Is(err, sql.ErrNoRows):
			had = false
		case err != nil:
			return err
		}
		if check && (had != (old != nil) || !bytes.Equal(now, old)) {
			return nil
		}
		swapped = true
		var names, size int64
		var gone bool
		if err := t.row(sqlKVUsage, account, workflow).Scan(&names, &size, &gone); err != nil {
			return err
		}
		if gone {
			return core.Errorf(core.CodeNotFound, "the account was deleted")
		}
		was := names + size
		if had {
			names, size = names-1, size-int64(len(key)+len(now))
		}
		if value != nil {
			names, size = names+1, size+int64(len(key)+len(value))
		}
		if (names > maxKVNames || size > maxKVBytes) && names+size > was {
			return core.Errorf(core.CodeQuotaExhausted, "the workflow keeps as much as it may")
		}
		if err := t.put(sqlKVUsagePut, account, workflow, names, size); err != nil {
			return err
		}
		if value == nil {
			return t.put(sqlKVDelete, account, workflow, key)
		}
		return t.put(sqlKVPut, account, workflow, key, value)
	})
	return swapped && err == nil, err
}
