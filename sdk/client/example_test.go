package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/keyfire/keyfire/sdk/client"
)

// demo stands in for a server, so that the examples run anywhere.
func demo() (url string, stop func()) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/workflows/greet/runs", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if string(body) == `{}` {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusUnprocessableEntity)
			io.WriteString(w, `{"code":"invalid_input","detail":"1 field is invalid","errors":[{"pointer":"#/input/name","detail":"required"}]}`)
			return
		}
		io.WriteString(w, `{"object":"run","id":"run_01","status":"succeeded","output":{"greeting":"Hello, Ada"}}`)
	})
	mux.HandleFunc("POST /v1/keys", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"object":"key","id":"key_01","name":"ci","secret":"kft_shown-once"}`)
	})
	mux.HandleFunc("GET /v1/runs", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("cursor") == "" {
			io.WriteString(w, `{"object":"list","data":[{"id":"run_03"},{"id":"run_02"}],"has_more":true,"next_cursor":"c"}`)
			return
		}
		io.WriteString(w, `{"object":"list","data":[{"id":"run_01"}],"has_more":false,"next_cursor":null}`)
	})
	srv := httptest.NewServer(mux)
	return srv.URL, func() {
		http.DefaultClient.CloseIdleConnections()
		srv.Close()
	}
}

func ExampleClient_Trigger() {
	url, stop := demo()
	defer stop()
	c, err := client.New(client.Config{URL: url, Key: "kft_..."})
	if err != nil {
		fmt.Println(err)
		return
	}
	run, err := c.Trigger(context.Background(), "greet", client.TriggerRequest{Input: map[string]any{"name": "Ada"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(run.Status, string(run.Output))
	// Output: succeeded {"greeting":"Hello, Ada"}
}

func ExampleError() {
	url, stop := demo()
	defer stop()
	c, err := client.New(client.Config{URL: url, Key: "kft_..."})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = c.Trigger(context.Background(), "greet", client.TriggerRequest{})
	var problem *client.Error
	if errors.As(err, &problem) {
		fmt.Println(problem.Status, problem.Code)
		for _, f := range problem.Errors {
			fmt.Println(f.Pointer, f.Detail)
		}
	}
	// Output:
	// 422 invalid_input
	// #/input/name required
}

func ExampleClient_CreateKey() {
	url, stop := demo()
	defer stop()
	c, err := client.New(client.Config{URL: url, Key: "kfa_..."})
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := c.CreateKey(context.Background(), client.NewKey{Name: "ci", Workflow: "greet", MaxRuns: 100})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(key.ID, key.Secret) // the secret cannot be had again
	// Output: key_01 kft_shown-once
}

func ExampleClient_Runs() {
	url, stop := demo()
	defer stop()
	c, err := client.New(client.Config{URL: url, Key: "kfa_..."})
	if err != nil {
		fmt.Println(err)
		return
	}
	query := client.RunQuery{Workflow: "greet"}
	for {
		page, err := c.Runs(context.Background(), query)
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, run := range page.Data {
			fmt.Println(run.ID)
		}
		if !page.HasMore {
			break
		}
		query.Cursor = page.NextCursor
	}
	// Output:
	// run_03
	// run_02
	// run_01
}
