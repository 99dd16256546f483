// Command typed is a node on the Go SDK, for the tests of both sides: it does what its input says by means of package node alone.
package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/keyfire/keyfire/sdk/node"
)

type input struct {
	Op  string          `json:"op"`
	URL string          `json:"url"`
	Any json.RawMessage `json:"any"`
}

type output struct {
	Config string          `json:"config,omitempty"`
	Status int             `json:"status,omitempty"`
	Body   string          `json:"body,omitempty"`
	Any    json.RawMessage `json:"any,omitempty"`
}

func do(ctx *node.Context, in input) (out output, err error) {
	switch in.Op {
	case "echo":
		out.Any = in.Any
	case "config":
		var c struct {
			Region string `json:"region"`
		}
		err = ctx.Config(&c)
		out.Config = c.Region
	case "log":
		ctx.Log().With("a", 1).WithGroup("g").Warn("careful", "b", "x y")
	case "http":
		r, err := ctx.HTTP(&node.Request{URL: in.URL})
		if err != nil {
			return out, fmt.Errorf("fetch: %w", err)
		}
		out.Status, out.Body = r.Status, string(r.Body)
	case "secret":
		secret, err := ctx.Secret("TOKEN")
		if err != nil {
			return out, err
		}
		encoded := base64.StdEncoding.EncodeToString([]byte("user:" + secret))
		ctx.Log().Info("the secret is " + secret)
		ctx.Log().Info("encoded", "header", "Basic "+encoded)
		ctx.Log().Info("quoted", "token", secret)
		out.Body = "<" + secret + "> " + encoded
		out.Config = fmt.Sprint(len(secret))
	case "secret_error":
		secret, err := ctx.Secret("TOKEN")
		if err != nil {
			return out, err
		}
		return out, errors.New(strings.Repeat("x", 995) + secret)
	case "count":
		kv := ctx.KV()
		for {
			old, err := kv.Get("count")
			if err != nil && !errors.Is(err, node.ErrNotFound) {
				return out, err
			}
			n, _ := strconv.Atoi(string(old)) // 0 when there is none
			err = kv.CompareAndSwap("count", old, []byte(strconv.Itoa(n+1)))
			if errors.Is(err, node.ErrConflict) {
				continue
			}
			out.Status = n + 1
			return out, err
		}
	case "fail":
		err = node.Fail(409, "duplicate_invoice", "this invoice exists")
	case "fail_wrongly":
		err = node.Fail(200, "Not-Found", "there is no such invoice")
	case "long":
		err = errors.New(strings.Repeat("\x00<", 20_000) + "end")
	case "unavailable":
		err = fmt.Errorf("ask the rates service: %w", node.Unavailable("closed on %s", "Sundays"))
	case "error":
		err = errors.New("this cannot work")
	case "panic":
		panic("out of ideas")
	default:
		err = fmt.Errorf("unknown op %q", in.Op)
	}
	return out, err
}

func init() { node.Handle(do) }
func main() { node.Main() }
