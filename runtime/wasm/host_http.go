package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// requestHead is what http_request takes and responseHead what http_head gives, as JSON.
type requestHead struct {
	Method  string      `json:"method"`
	URL     string      `json:"url"`
	Headers [][2]string `json:"headers"`
}

type responseHead struct {
	Status  int         `json:"status"`
	Headers [][2]string `json:"headers"`
	Length  int         `json:"length"` // of the body
}

// maxRequestHead is the most bytes of JSON that describe a request.
const maxRequestHead = 64 << 10

// httpRequest sends a request and keeps the response, until the next one, for http_head and http_body to read.
func httpRequest(g *guest, m api.Memory, p []uint64) int64 {
	raw, ok := m.Read(uint32(p[0]), uint32(p[1]))
	if !ok {
		return g.badPointer()
	}
	body, ok := m.Read(uint32(p[2]), uint32(p[3]))
	if !ok {
		return g.badPointer()
	}
	g.spend(parseWork * min(len(raw), maxRequestHead))
	var head requestHead
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if len(raw) > maxRequestHead || dec.Decode(&head) != nil {
		return g.refuse(abiInvalid, `a request is {"method": "GET", "url": "https://...", "headers": [["Name", "value"]]}, at most 64 KiB`)
	}
	in, code := g.fetch(head, body)
	g.response.head, g.response.body = nil, nil
	if code != abiOK {
		return int64(code)
	}
	b, err := json.Marshal(responseHead{in.status, in.header, len(in.body)})
	if err != nil {
		g.abort(fmt.Errorf("encode response head: %w", err))
	}
	g.response.head, g.response.body = b, in.body
	return int64(len(b))
}

// fetch sends a request for the guest. With a code other than abiOK, g.why says what was wrong.
func (g *guest) fetch(head requestHead, body []byte) (in incoming, code int32) {
	if len(body) > MaxRequestBody { // before it is copied
		return incoming{}, int32(g.refuse(abiInvalid, "the request's body has more than %s", byteSize(MaxRequestBody)))
	}
	g.requests++
	out := outgoing{
		run: g.call.Account + "/" + g.call.Run, rules: g.rules, observe: g.call.Observe,
		method: head.Method, url: head.URL, header: head.Headers, body: bytes.Clone(body),
		// To wait for it is part of the request's time: the service waits, too.
		large: func(ctx context.Context) error {
			g.charge.note(useBody, 2*MaxResponseBody)
			if n := g.charge.ask(); n > 0 {
				return g.charge.wait(ctx, n)
			}
			return nil
		},
	}
	if g.call.Run != "" {
		// Every attempt of a step counts its requests from one, so a repeated attempt repeats the keys of the one before.
		out.idempotencyKey = g.call.Run + "/" + g.call.Step
		if g.requests > 1 {
			out.idempotencyKey += fmt.Sprintf("/%d", g.requests)
		}
	}
	var err error
	g.outside(func() { in, err = g.request(g.timed(), out) })
	if err == nil {
		return in, abiOK
	}
	var e *egressError
	if !errors.As(err, &e) {
		g.abort(err)
	}
	code = abiUnavailable
	switch e.class {
	case core.ClassDenied:
		code = abiDenied
	case core.ClassFailed:
		code = abiInvalid
	case core.ClassLimit:
		code = abiTooLarge
	case core.ClassTimeout:
		code = abiTimeout
	}
	g.refuse(code, "%s", e.text)
	return incoming{}, code
}

// request sends a request, or has its answer from a tape.
func (g *guest) request(ctx context.Context, out outgoing) (incoming, error) {
	if g.rec != nil {
		return g.rec.http(ctx, out)
	}
	return g.egress.do(ctx, out)
}

func httpHead(g *guest, m api.Memory, p []uint64) int64 {
	if g.response.head == nil {
		return g.refuse(abiNotFound, "there is no response: no request was sent, or the last one failed")
	}
	return g.give(m, p[0], p[1], g.response.head)
}

func httpBody(g *guest, m api.Memory, p []uint64) int64 {
	if g.response.head == nil {
		return g.refuse(abiNotFound, "there is no response: no request was sent, or the last one failed")
	}
	return g.part(m, p[0], p[1], p[2], g.response.body)
}
