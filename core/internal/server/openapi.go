package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
)

// secured lists the places of a credential; any one of them is enough.
var secured = []map[string][]string{{"bearer": {}}, {"apiKey": {}}, {"bifrostKey": {}}, {"queryKey": {}}}

const apiDescription = `Keyfire puts workflows behind API keys: POST a trigger, get the result.

**Errors** are [problem documents](https://www.rfc-editor.org/rfc/rfc9457) with a stable ` + "`code`" + `. 403: this credential may never do it. 404: it does not exist for you.
429: later, or more quota. 500 with a ` + "`run_`" + ` code: the workflow failed. 503: not your fault, try again. No problem repeats a credential or a value of your input.

**JSON** is read strictly: valid UTF-8, no duplicate or unknown members, at most 64 levels and 100,000 values, numbers kept digit by digit and within the range of a double.

**A superuser** acts for another account by the header Keyfire-Account: <id or name>, on every route with a credential.

**HEAD** is answered wherever GET is, with the same status and header, except on /v1/hooks, where a GET starts a run.

**Every answer** carries Keyfire-Request-Id; quote it when you ask for help.`

// describe returns the document before any route is in it.
func (s *Server) describe() *huma.OpenAPI {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	schemas.RegisterTypeAlias(reflect.TypeFor[core.Duration](), reflect.TypeFor[string]()) // written as text
	return &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "Keyfire", Version: s.Version, Description: apiDescription,
			License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Servers: []*huma.Server{{URL: "/"}},
		Tags: []*huma.Tag{
			{Name: "Trigger", Description: "Run workflows."}, {Name: "Runs", Description: "See what ran."}, {Name: "Keys"}, {Name: "Workflows"}, {Name: "Audit"}, {Name: "Auth plugins"}, {Name: "Server"},
		},
		Components: &huma.Components{
			Schemas: schemas,
			SecuritySchemes: map[string]*huma.SecurityScheme{
				"bearer":     {Type: "http", Scheme: "bearer", Description: "`Authorization: Bearer <key>`, or the access token of a session"},
				"apiKey":     {Type: "apiKey", In: "header", Name: "X-API-Key"},
				"bifrostKey": {Type: "apiKey", In: "header", Name: "X-Bifrost-Key"},
				"queryKey":   {Type: "apiKey", In: "query", Name: "x-api-key", Description: "Deprecated: URLs end up in logs. Only for keys made with allow_query. `api_key` is read too."},
			},
		},
	}
}

// operation finds a route in the document.
func operation(doc *huma.OpenAPI, method, path string) *huma.Operation {
	item := doc.Paths[path]
	switch method {
	case http.MethodGet:
		return item.Get
	case http.MethodHead:
		return item.Head
	case http.MethodPost:
		return item.Post
	case http.MethodPut:
		return item.Put
	case http.MethodPatch:
		return item.Patch
	case http.MethodDelete:
		return item.Delete
	}
	panic("server: no such operation: " + method + " " + path)
}

// Codes that any route behind a credential can answer with.
var commonCodes = []core.Code{
	core.CodeUnauthenticated, core.CodeInvalidKey, core.CodeKeyExpired, core.CodeKeyRevoked, core.CodeKeyDisabled, core.CodeAmbiguousCredential,
	core.CodeSourceNotAllowed, core.CodeInsufficientScope, core.CodeAccountDisabled, core.CodeUserDisabled, core.CodeSessionExpired, core.CodeSessionEnded,
	core.CodeAuthUnavailable, core.CodeRateLimited, core.CodeInvalidRequest, core.CodeNotFound, core.CodeURLTooLong, core.CodeHeadersTooLarge,
	core.CodeStoreUnavailable, core.CodeInternal,
}

// Codes that any route with a body can answer with.
var bodyCodes = []core.Code{core.CodeUnsupportedMediaType, core.CodeBodyTooLarge, core.CodeInvalidJSON, core.CodeUnknownField, core.CodeInvalidInput}

// routeCodes are the codes of single routes.
var routeCodes = map[string][]core.Code{
	"publish-workflow":  {core.CodeInvalidWorkflow, core.CodeConflict, core.CodeOverloaded},
	"republish-version": {core.CodeInvalidWorkflow, core.CodeConflict},
	"rename-workflow":   {core.CodeConflict},
	"delete-workflow":   {core.CodeInvalidInput},
	"revoke-key":        {core.CodeInvalidInput},
	"reload-plugin":     {core.CodeConflict},
	"create-key":        {core.CodeConflict},
	"change-key":        {core.CodeConflict},
	"enable-key":        {core.CodeConflict},
	"disable-key":       {core.CodeConflict},
	"rotate-key":        {core.CodeConflict},
	"import-key":        {core.CodeConflict},

	"create-account":  {core.CodeConflict},
	"disable-account": {core.CodeConflict},
	"delete-account":  {core.CodeConflict},
	"create-user":     {core.CodeConflict, core.CodeOverloaded},
	"set-user-role":   {core.CodeConflict}, "disable-user": {core.CodeConflict}, "enable-user": {core.CodeConflict}, "delete-user": {core.CodeConflict},
	"set-user-password": {core.CodeInvalidLogin, core.CodeOverloaded},
	"logout":            {core.CodeConflict},
	"login":             append([]core.Code{core.CodeInvalidLogin, core.CodeAccountDisabled, core.CodeUserDisabled}, openCodes...),
	"refresh":           append([]core.Code{core.CodeInvalidKey, core.CodeAccountDisabled, core.CodeUserDisabled, core.CodeSessionExpired, core.CodeSessionEnded}, openCodes...),
	"setup":             append([]core.Code{core.CodeInvalidLogin, core.CodeConflict}, openCodes...),

	"cancel-run":         {core.CodeRunAlreadyFinished},
	"replay-run":         append([]core.Code{core.CodeReplayIncompatible, core.CodeConflict}, triggerCodes...),
	"redeliver-callback": {core.CodeConflict},
	"trigger":            triggerCodes,
	"trigger-workflow":   triggerCodes,
	"post-webhook":       hookCodes,
	"put-webhook":        hookCodes,
	"get-webhook":        hookCodes,
}

// openCodes are the codes of routes that take a credential in their body.
var openCodes = []core.Code{
	core.CodeAmbiguousCredential, core.CodeInvalidRequest, core.CodeRateLimited, core.CodeURLTooLong, core.CodeHeadersTooLarge, core.CodeNotSupported,
	core.CodeOverloaded, core.CodeStoreUnavailable, core.CodeAuditUnavailable, core.CodeInternal,
}

var triggerCodes = []core.Code{
	core.CodeWorkflowRequired, core.CodeWorkflowDisabled, core.CodeOverrideNotAllowed, core.CodeNotSupported, core.CodeConflict,
	core.CodeIdempotencyKeyReused, core.CodeQuotaExhausted, core.CodeConcurrencyLimited, core.CodeRunFailed, core.CodeRunTimedOut, core.CodeRunCancelled,
	core.CodeRunInterrupted, core.CodeOverloaded, core.CodeDraining,
}

// describeErrors documents the problems a route can answer with, one response for each status, with the codes it stands for.
func (s *Server) describeErrors(op *huma.Operation) {
	codes := slices.Clone(routeCodes[op.OperationID])
	if len(op.Security) > 0 {
		codes = append(codes, commonCodes...)
	}
	if op.RequestBody != nil || op.Method == http.MethodPost {
		codes = append(codes, bodyCodes...)
	}
	byStatus := make(map[int][]string)
	for _, c := range codes {
		k := kinds[c]
		if text := "`" + string(c) + "`: " + strings.ToLower(k.title[:1]) + k.title[1:]; !slices.Contains(byStatus[k.status], text) {
			byStatus[k.status] = append(byStatus[k.status], text)
		}
	}
	delete(op.Responses, "default")
	for status, texts := range byStatus {
		slices.Sort(texts)
		r := &huma.Response{
			Description: strings.Join(texts, "; ") + ".",
			Headers:     map[string]*huma.Param{"Keyfire-Request-Id": requestIDHeader()},
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: s.schema(Problem{})}},
		}
		switch status {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusBadRequest:
			r.Headers["WWW-Authenticate"] = textHeader("Bearer, with the error of RFC 6750 when it is the credential that is wrong.")
		case http.StatusServiceUnavailable, http.StatusTooManyRequests:
			r.Headers["Retry-After"] = textHeader("Seconds to wait; absent when waiting does not help.")
			if status == http.StatusTooManyRequests {
				describeLimits(r.Headers)
			}
		case http.StatusUnsupportedMediaType:
			r.Headers[acceptHeader(op.Method)] = textHeader("What the body may be.")
		}
		op.Responses[strconv.Itoa(status)] = r
	}
	for status, r := range op.Responses {
		if r.Headers == nil {
			r.Headers = make(map[string]*huma.Param)
		}
		r.Headers["Keyfire-Request-Id"] = requestIDHeader()
		if r.Description == "" {
			n, _ := strconv.Atoi(status)
			r.Description = http.StatusText(n)
		}
	}
}

func describeLimits(headers map[string]*huma.Param) {
	headers["RateLimit-Policy"] = textHeader("The limits of the key, if it has any but a number of runs in all (draft-ietf-httpapi-ratelimit-headers).")
	headers["RateLimit"] = textHeader("What is left of each.")
}

func requestIDHeader() *huma.Param {
	return textHeader("Names this request in the server's log, traces and audit log.")
}

func textHeader(description string) *huma.Param {
	return &huma.Param{Description: description, Schema: &huma.Schema{Type: huma.TypeString}}
}

func (s *Server) schema(v any) *huma.Schema {
	t := reflect.TypeOf(v)
	return s.api.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
}

func (s *Server) schemaOf(name string) *huma.Schema {
	return s.api.OpenAPI().Components.Schemas.Map()[name]
}

// nullable lets a member that is a reference be null, for which huma has no tag.
func nullable(s *huma.Schema, member string) {
	p := s.Properties[member]
	s.Properties[member] = &huma.Schema{AnyOf: []*huma.Schema{{Ref: p.Ref}, {Type: "null"}}, Description: p.Description}
}

func publishBody() *huma.RequestBody {
	file := &huma.Schema{Type: huma.TypeString, Description: "The workflow file."}
	binary := &huma.Schema{Type: huma.TypeString, Format: "binary"}
	return &huma.RequestBody{
		Required:    true,
		Description: "A workflow file, alone or with the modules that it names by path. Up to 64 MiB in all, 16 MiB a module and 256 KiB for the file.",
		Content: map[string]*huma.MediaType{
			typeYAML: {Schema: file},
			typeJSON: {Schema: &huma.Schema{Type: huma.TypeObject, Description: "The workflow file in its JSON form.", AdditionalProperties: true}},
			typeForm: {
				Schema: &huma.Schema{
					Type: huma.TypeObject, Required: []string{"workflow"},
					Properties: map[string]*huma.Schema{
						"workflow": {Type: huma.TypeString, Format: "binary", Description: "The workflow file. Its file name is used in error messages, and ends in .json for JSON."},
						"module":   {Type: huma.TypeArray, Items: binary, Description: "WebAssembly modules. The file name of a part is what the workflow file has in `uses`, such as ./nodes/fetch.wasm."},
					},
				},
				Encoding: map[string]*huma.Encoding{"workflow": {ContentType: typeYAML}, "module": {ContentType: "application/wasm"}},
			},
		},
	}
}

// describeTriggers documents the routes that start runs, which are not huma's.
func (s *Server) describeTriggers() {
	doc := s.api.OpenAPI()
	runHeaders := func() map[string]*huma.Param {
		headers := map[string]*huma.Param{
			"Keyfire-Run-Id":       textHeader("Id of the run."),
			"Keyfire-Run-Status":   textHeader("State of the run."),
			runExisting:            textHeader("true when the run was there before, and dedupe found it. It may have another input."),
			"Idempotency-Replayed": textHeader("true when an earlier request with the same Idempotency-Key started the run."),
			"Deprecation":          textHeader("Sent when the key was in the query."),
			"Preference-Applied":   textHeader("What of Prefer was applied."),
		}
		describeLimits(headers)
		return headers
	}
	accepted := runHeaders()
	accepted["Location"] = textHeader("The run.")
	accepted["Retry-After"] = textHeader("Seconds to wait before asking for it.")
	body := func(required bool) *huma.RequestBody {
		b := s.jsonBody(Trigger{}, required, map[string]any{"input": map[string]any{"name": "Ada"}, "metadata": map[string]any{"crm_id": "42"}})
		b.Description = "May be left out, with its Content-Type; it is then an empty object."
		return b
	}
	run := func() map[string]*huma.MediaType {
		return map[string]*huma.MediaType{typeJSON: {Schema: s.schema(Run{})}}
	}
	params := []*huma.Param{
		{Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: huma.TypeString}, Description: "Makes a repeated request find the run of the first one instead of starting another, for 24 hours. 1 to 255 visible ASCII characters, bare or as a structured-field string. The scope is the caller and the workflow; a different request under the same key is refused."},
		{Name: "Prefer", In: "header", Schema: &huma.Schema{Type: huma.TypeString}, Description: "How to wait (RFC 7240). `respond-async` answers 202 at once; `wait=N` waits N seconds for the end of the run and answers 202 when they are over, at most as long as the server allows. Both make the run durable: it goes through a queue, survives the server, and goes on after its last finished step. Preference-Applied says what was applied."},
		{Name: "Accept", In: "header", Schema: &huma.Schema{Type: huma.TypeString}, Description: "text/event-stream triggers a durable run and follows it in one request: the answer is the stream of its events."},
		{Name: "Last-Event-ID", In: "header", Schema: &huma.Schema{Type: huma.TypeString}, Description: "With Accept: text/event-stream, when the Idempotency-Key finds a run: the stream goes on after this event."},
		{Name: "traceparent", In: "header", Schema: &huma.Schema{Type: huma.TypeString}, Description: "W3C trace context. The run's trace is linked to it, and continues it only behind a trusted proxy."},
	}
	description := "Runs the workflow and answers with the finished run, or with 202 and the accepted run when the caller does not want to wait that long. That the run failed is a problem with its `run_id`: 500 for a failure, or the status that the workflow chose. " +
		"The caller going away does not stop the run."
	named := &huma.Operation{
		OperationID: "trigger-workflow", Method: http.MethodPost, Path: "/v1/workflows/{workflow}/runs", Tags: []string{"Trigger"}, Security: slices.Clone(secured),
		Summary: "Trigger a workflow", Description: description + " No credential is needed for a workflow that its author made public.",
		Parameters: append([]*huma.Param{{
			Name: "workflow", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString},
			Description: "Id, slug or alias, with an optional `@<version>`. A slash in a slug may be written as it is or as %2F.",
		}}, params...),
		RequestBody: body(false),
	}
	bound := &huma.Operation{
		OperationID: "trigger", Method: http.MethodPost, Path: routeTrigger, Tags: []string{"Trigger"}, Security: slices.Clone(secured),
		Summary: "Trigger the workflow of the key", Description: "For keys that are made for one workflow. " + description,
		Parameters: params, RequestBody: body(false),
	}
	for _, op := range []*huma.Operation{named, bound} {
		finished := run()
		finished[typeEvents] = &huma.MediaType{Schema: s.schema(RunEvent{})}
		op.Responses = map[string]*huma.Response{
			"200": {Description: "The run succeeded; or, if the request accepts text/event-stream, it was accepted and these are its events.", Headers: runHeaders(), Content: finished},
			"202": {Description: "The run was accepted and has not ended.", Headers: accepted, Content: run()},
		}
		s.describeErrors(op)
		for status, r := range op.Responses {
			if status >= "409" && status != "413" && status != "415" { // a run may have ended like this
				maps.Copy(r.Headers, runHeaders())
			}
		}
		op.Responses["default"] = &huma.Response{
			Description: "The workflow failed on purpose, with a status from 400 to 599 and a code of its own choice.", Headers: runHeaders(),
			Content: map[string]*huma.MediaType{"application/problem+json": {Schema: s.schema(Problem{})}},
		}
		doc.AddOperation(op)
	}
}

// describeOpen documents the routes that take no credential, which are not huma's either.
func (s *Server) describeOpen() {
	doc := s.api.OpenAPI()
	state := func(description string) *huma.Response {
		return &huma.Response{Description: description, Content: map[string]*huma.MediaType{typeJSON: {Schema: s.schema(status{})}}}
	}
	readiness := func(description string) *huma.Response {
		return &huma.Response{Description: description, Content: map[string]*huma.MediaType{typeJSON: {Schema: s.schema(Readiness{})}}}
	}
	open := func(method, id, path, summary string, responses map[string]*huma.Response) {
		op := &huma.Operation{OperationID: id, Method: method, Path: path, Tags: []string{"Server"}, Summary: summary, Responses: responses, Security: []map[string][]string{}}
		s.describeErrors(op)
		doc.AddOperation(op)
	}
	for _, m := range []struct{ method, prefix string }{{http.MethodGet, "get"}, {http.MethodHead, "head"}} {
		open(m.method, m.prefix+"-health", "/healthz", "Is the server up?", map[string]*huma.Response{"200": state("It is.")})
		open(m.method, m.prefix+"-readiness", "/readyz", "Does the server take requests?", map[string]*huma.Response{
			"200": readiness("It does."), "503": readiness("Not now: it is stopping, or its store is out of order."),
		})
		open(m.method, m.prefix+"-openapi", "/openapi.json", "This document", map[string]*huma.Response{
			"200": {Description: "OpenAPI 3.1.", Content: map[string]*huma.MediaType{"application/openapi+json": {Schema: &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}}}},
		})
		open(m.method, m.prefix+"-docs", "/docs", "This document, for reading", map[string]*huma.Response{
			"200": {Description: "A page that needs no script and nothing from elsewhere.", Content: map[string]*huma.MediaType{"text/html": {Schema: &huma.Schema{Type: huma.TypeString}}}},
		})
	}
}

// finishDocument describes what is not huma's. The document does not change any more; it is written when it is first asked for, which takes as long as
// the rest of a start.
func (s *Server) finishDocument() {
	s.describeTriggers()
	s.describeHooks()
	s.describeOpen()
	s.describeStream()
	s.describeOthers()
	nullable(s.schemaOf("Key"), "refill")
	nullable(s.schemaOf("CreatedKey"), "refill")
	nullable(s.schemaOf("Run"), "error")
	nullable(s.schemaOf("Step"), "error")
	s.listTags()
	s.document = sync.OnceValues(func() ([]byte, error) {
		doc, err := json.Marshal(s.api.OpenAPI())
		if err != nil {
			return nil, fmt.Errorf("write the API document: %w", err)
		}
		return append(doc, '\n'), nil
	})
	s.docs = sync.OnceValues(func() (docs, error) { return renderDocs(s.api.OpenAPI()) })
}

// describeOthers adds what a route answers beside what huma knows of: a second good status, and headers that are set while it works.
func (s *Server) describeOthers() {
	doc := s.api.OpenAPI()
	for _, published := range []map[string]*huma.Response{
		operation(doc, http.MethodPut, "/v1/workflows/{workflow}").Responses,
		operation(doc, http.MethodPost, "/v1/workflows/{workflow}/versions/{version}/publish").Responses,
	} {
		published["200"] = &huma.Response{Description: "The newest version has this content already, or nothing was to be written.", Headers: published["201"].Headers, Content: published["201"].Content}
	}
	set := operation(doc, http.MethodPut, "/v1/secrets/{secret}").Responses
	set["201"] = &huma.Response{Description: "The secret is new.", Headers: set["200"].Headers, Content: set["200"].Content}
	for path, item := range doc.Paths {
		if !strings.HasPrefix(path, "/v1/runs/{run}") && !strings.HasPrefix(path, "/v1/hooks/") {
			continue
		}
		for _, op := range operations(item) {
			for _, r := range op.Responses { // of errors too, once the run is found
				r.Headers["Keyfire-Run-Id"] = textHeader("Id of the run.")
				r.Headers["Keyfire-Run-Status"] = textHeader("State of the run.")
			}
		}
	}
	for _, cancels := range []map[string]*huma.Response{
		operation(doc, http.MethodDelete, "/v1/keys/{key}").Responses,
		operation(doc, http.MethodPost, "/v1/keys/{key}/disable").Responses,
		operation(doc, http.MethodDelete, "/v1/workflows/{workflow}").Responses,
		operation(doc, http.MethodPost, "/v1/accounts/{account}/disable").Responses,
	} {
		for _, status := range []string{"200", "204", "500", "503"} {
			if r := cancels[status]; r != nil {
				r.Headers["Keyfire-Cancelled-Runs"] = textHeader("How many runs were cancelled, when that was asked for.")
			}
		}
	}
}

// listTags adds the tags that routes use and describe does not list, in the order of their paths.
func (s *Server) listTags() {
	doc := s.api.OpenAPI()
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		for _, op := range operations(doc.Paths[path]) {
			for _, name := range op.Tags {
				if !slices.ContainsFunc(doc.Tags, func(t *huma.Tag) bool { return t.Name == name }) {
					doc.Tags = append(doc.Tags, &huma.Tag{Name: name})
				}
			}
		}
	}
}

func (s *Server) getDocument(c *gin.Context) {
	document, err := s.document()
	if err != nil {
		s.fail(c, err)
		return
	}
	c.Header("Cache-Control", "public, max-age=300")
	s.sendBytes(c, http.StatusOK, "application/openapi+json", document)
}
