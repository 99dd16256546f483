package client

import (
	"context"
	"net/http"
	"net/url"
)

// Snippets are ready-made requests that run a workflow. They read the key from the environment variable KEYFIRE_KEY.
type Snippets struct {
	Workflow string    `json:"workflow"`
	URL      string    `json:"url"`
	Code     string    `json:"code"` // when one client was asked for
	Data     []Snippet `json:"data"`

	Response Response `json:"-"`
}

// Snippet is one of them.
type Snippet struct {
	Client   string `json:"client"` // curl, python, javascript, go, keyflow, miiflow, langflow, bifrost
	Language string `json:"language"`
	Code     string `json:"code"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (s *Snippets) Raw() []byte { return s.Response.Body }

// Snippets returns requests for a workflow: for one client, or for all when it is "". base is where callers reach the server, "" being where this client does.
func (c *Client) Snippets(ctx context.Context, workflow, client, base string) (*Snippets, error) {
	v := url.Values{}
	set(v, "client", client)
	set(v, "url", base)
	return one(ctx, c, request{method: http.MethodGet, path: []string{"v1", "workflows", workflow, "snippets"}, query: v}, func(v *Snippets, res Response) { v.Response = res })
}
