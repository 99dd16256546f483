package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/keyfire/keyfire/sdk/node/internal/abi"
)

// Context is what a node has beside its input. It is valid during the call it was given to.
//
// As a context.Context it never ends: when the node's time is up, the host stops the whole instance.
type Context struct {
	context.Context

	host   abi.Host
	logger *slog.Logger
}

// Log returns the log of the step. Lines are kept with the run, up to 64 KiB an invocation.
func (c *Context) Log() *slog.Logger {
	if c.logger == nil {
		c.logger = slog.New(&logHandler{host: c.host})
	}
	return c.logger
}

// Config decodes the node's config, the constants that the workflow sets beside the input, into a pointer to a struct. A name that the struct
// does not have is an error, as it is for the input.
func (c *Context) Config(into any) error {
	b, code := c.host.Config()
	if err := hostError(c.host, code); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("read the config: %w", err)
	}
	return nil
}
