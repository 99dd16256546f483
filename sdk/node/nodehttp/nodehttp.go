// Package nodehttp lets code that was written for net/http send its requests from a node.
package nodehttp

import (
	"bytes"
	"fmt"
	"io"
	"net/http"

	"github.com/keyfire/keyfire/sdk/node"
)

// Client returns a client whose requests leave through the host, under the node's grants. It follows no redirect: the response that asks
// for one is returned. A client that shall follow them, each under the grants again, is &http.Client{Transport: nodehttp.Transport(ctx)}.
func Client(ctx *node.Context) *http.Client {
	return &http.Client{
		Transport:     Transport(ctx),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Transport returns a RoundTripper that sends requests through the host. Bodies are sent and received whole: at most 1 MiB each. It is
// valid as long as ctx is. Contexts of requests are not watched during a request, which ends after 10 seconds at the latest.
func Transport(ctx *node.Context) http.RoundTripper { return transport{ctx} }

type transport struct{ ctx *node.Context }

// hostSets are header fields that net/http puts into requests and the host takes from elsewhere.
var hostSets = map[string]bool{"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Connection": true}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if cerr := r.Body.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, fmt.Errorf("read the request's body: %w", err)
		}
		body = b
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	out := &node.Request{Method: r.Method, URL: r.URL.String(), Body: body}
	for name, values := range r.Header {
		if hostSets[name] {
			continue
		}
		for _, v := range values {
			out.Header = append(out.Header, [2]string{name, v})
		}
	}
	in, err := t.ctx.HTTP(out)
	if err != nil {
		return nil, err
	}
	res := &http.Response{
		Status: fmt.Sprintf("%d %s", in.Status, http.StatusText(in.Status)), StatusCode: in.Status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: io.NopCloser(bytes.NewReader(in.Body)), ContentLength: int64(len(in.Body)), Request: r,
	}
	for _, f := range in.Header {
		res.Header.Add(f[0], f[1])
	}
	return res, nil
}
