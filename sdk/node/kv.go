package node

import "github.com/keyfire/keyfire/sdk/node/internal/abi"

// KV keeps values from one run to the next. The nodes of a workflow share one, under a grant; nothing else reaches it:
//
//	grants: {kv: write}
//
// A key has 1 to 512 bytes of UTF-8, none of which is 0 (ErrInvalid), a value at most 64 KiB, and a workflow at most 10,000 keys and 16 MiB
// (ErrTooLarge). A value that was put is durable, and it stays if the run fails later.
type KV struct{ host abi.Host }

// KV returns the values of the workflow.
func (c *Context) KV() KV { return KV{c.host} }

// Get returns the value of a key, ErrNotFound if it has none. It needs kv: read.
func (k KV) Get(key string) ([]byte, error) {
	b, code := k.host.Get(key)
	return b, hostError(k.host, code)
}

// Put sets the value of a key.
func (k KV) Put(key string, value []byte) error {
	return hostError(k.host, k.host.Put(key, present(value)))
}

// Delete removes a key. That it has no value is no error.
func (k KV) Delete(key string) error { return hostError(k.host, k.host.Put(key, nil)) }

// CompareAndSwap sets the value of a key if it is old, and returns ErrConflict if it is not. A nil old stands for no value, and a nil value removes
// the key: that is how several runs at once agree on one of them.
func (k KV) CompareAndSwap(key string, old, value []byte) error {
	return hostError(k.host, k.host.Swap(key, old, value))
}

// present makes an empty value of a nil one.
func present(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
