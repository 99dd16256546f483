// Package client is the Go client of Keyfire's HTTP API.
//
//	c, err := client.New(client.Config{URL: "https://keyfire.example.com", Key: os.Getenv("KEYFIRE_KEY")})
//	if err != nil {
//		return err
//	}
//	run, err := c.Trigger(ctx, "greet", client.TriggerRequest{Input: map[string]any{"name": "Ada"}})
//
// A trigger key (kft_) starts runs and reads the runs it started; every other method needs an admin key (kfa_).
//
// An answer other than 2xx is an [*Error] with the stable code of the problem, the request id to quote to an operator, and, when
// a run was started, its id. The client never repeats a request: whoever may start a run twice only when the first did not
// happen sets TriggerRequest.IdempotencyKey and repeats it themselves.
//
// The types here grow with the API: members may be added, none is renamed or removed within /v1. What the server sent and this
// version does not know yet is in [Response.Body].
package client
