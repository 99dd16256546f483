package node

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Request is an HTTP request of a node.
type Request struct {
	Method string      // such as "GET"; "" is GET
	URL    string      // absolute, https or http
	Header [][2]string // name and value; a name may come more than once
	Body   []byte
}

// Response is the answer to a Request. Redirects are answers too: they are not followed.
type Response struct {
	Status int
	Header [][2]string
	Body   []byte
}

// Get returns the first value of a header field, "" if there is none. The case of the name does not matter.
func (r *Response) Get(name string) string {
	for _, f := range r.Header {
		if strings.EqualFold(f[0], name) {
			return f[1]
		}
	}
	return ""
}

// HTTP sends a request and waits for the whole response, whatever its status. The workflow must grant the method and origin:
//
//	grants: {http: ["GET https://api.example.com"]}
//
// The host adds an Idempotency-Key that is the same in every attempt of the step, unless the request has one. It refuses header fields that
// belong to the connection, addresses that are not public, and responses of more than 1 MiB, and waits at most 10 seconds. An error
// is ErrDenied, ErrInvalid, ErrTooLarge, ErrTimeout or ErrUnavailable.
//
// Nodes that use a library made for net/http take its client from package nodehttp. That adds some megabytes to the module.
func (c *Context) HTTP(r *Request) (*Response, error) {
	head := struct {
		Method  string      `json:"method"`
		URL     string      `json:"url"`
		Headers [][2]string `json:"headers"`
	}{r.Method, r.URL, r.Header}
	if head.Method == "" {
		head.Method = "GET"
	}
	b, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	answer, body, code := c.host.HTTP(b, r.Body)
	if err := hostError(c.host, code); err != nil {
		return nil, err
	}
	var said struct {
		Status  int         `json:"status"`
		Headers [][2]string `json:"headers"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return nil, fmt.Errorf("read the response: %w", err)
	}
	return &Response{said.Status, said.Headers, body}, nil
}
