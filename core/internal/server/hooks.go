package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// hookMethods are those that senders of webhooks use.
var hookMethods = []string{http.MethodPost, http.MethodPut, http.MethodGet}

// Headers of a webhook that is signed as its workflow says (package hookauth): the one that is a credential by itself, and those it is over.
var (
	hookSignature = []string{"Webhook-Signature"}
	hookShown     = []string{"Webhook-Id", "Webhook-Timestamp"}
)

// HookAccepted is the answer to a webhook that started a run, or whose message had started one before.
type HookAccepted struct {
	RunID     string `json:"run_id"`
	Status    string `json:"status,omitempty" doc:"State of the run when it was accepted; absent for a duplicate."`
	Duplicate bool   `json:"duplicate,omitempty" doc:"Whether a message with this webhook-id, or a request with this Idempotency-Key, had started the run before."`
}

// runHook takes a webhook: the body as it is is the input. It answers once the run is accepted, because senders wait for seconds and try again.
func (s *Server) runHook(c *gin.Context) {
	ctx := c.Request.Context()
	req := requestOf(ctx)
	ticket, err := s.open(c, c.Param("workflow"))
	if err != nil {
		s.fail(c, err)
		return
	}
	payload, err := s.hookPayload(c, req, ticket.Principal.Backend == auth.BackendWebhook)
	if err != nil {
		s.fail(c, err)
		return
	}
	begun, err := s.Trigger.Begin(ctx, ticket, payload)
	if err != nil {
		s.fail(c, err)
		return
	}
	req.begun(ctx, begun)
	c.Header("Location", "/v1/runs/"+begun.RunID)
	setLimits(c.Writer.Header(), begun.Limits)
	if begun.Replayed {
		if payload.MessageID == "" {
			c.Header("Idempotency-Replayed", "true")
		}
		s.send(c, http.StatusOK, typeJSON, HookAccepted{RunID: begun.RunID, Duplicate: true})
		return
	}
	s.send(c, http.StatusAccepted, typeJSON, HookAccepted{RunID: begun.RunID, Status: string(core.RunQueued)})
}

// hookPayload reads what a webhook carries. What is signed is the body: of a message that is, nothing else can be the input.
func (s *Server) hookPayload(c *gin.Context, req *request, signed bool) (trigger.Payload, error) {
	p := trigger.Payload{Webhook: true, Durable: true}
	h := c.Request.Header
	var err error
	if p.IdempotencyKey, err = idempotencyKey(h["Idempotency-Key"]); err != nil {
		return p, err
	}
	if p.MessageID, err = messageID(h["Webhook-Id"]); err != nil {
		return p, err
	}
	if encoded(h) {
		return p, core.Errorf(core.CodeUnsupportedMediaType, refuseEncoded)
	}
	types := h["Content-Type"]
	if len(types) > 1 {
		return p, core.Errorf(core.CodeUnsupportedMediaType, refuseTypes)
	}
	body, err := s.readBody(c, req, s.MaxBody)
	if err != nil {
		return p, err
	}
	switch {
	case len(body) == 0 && signed && c.Request.URL.RawQuery != "":
		return p, core.Errorf(core.CodeInvalidRequest, "the signature of a webhook does not cover the query, so the query is no input; send the input as the body")
	case len(body) == 0:
		p.Input, err = queryInput(c.Request.URL)
		return p, err
	}
	p.Input, err = hookInput(strings.Join(types, ""), body)
	return p, err
}

// hookInput makes JSON of a body. JSON stays what it is. Text is a string. Anything else is a string of base64, as is text in another encoding
// than UTF-8. What has no type is the first of these that it can be.
func hookInput(contentType string, body []byte) (json.RawMessage, error) {
	t, params, err := mime.ParseMediaType(contentType)
	if contentType != "" && err != nil {
		return nil, core.Errorf(core.CodeUnsupportedMediaType, "the Content-Type cannot be read")
	}
	if t == "multipart/form-data" {
		return nil, core.Errorf(core.CodeUnsupportedMediaType, "a form with files has no form as an input; send the file itself")
	}
	text := utf8.Valid(body) && (params["charset"] == "" || strings.EqualFold(params["charset"], "utf-8") || strings.EqualFold(params["charset"], "us-ascii"))
	switch {
	case t == "application/json" || strings.HasSuffix(t, "+json"):
		if err := core.CheckJSON(body, core.JSONLimits{}); err != nil {
			return nil, err
		}
		return body, nil
	case t == "" && core.CheckJSON(body, core.JSONLimits{}) == nil:
		return body, nil
	case text && (t == "" || textual(t)):
		return jsonString(string(body))
	}
	return jsonString(base64.StdEncoding.EncodeToString(body))
}

// textual reports whether a media type is of text.
func textual(t string) bool {
	if strings.HasPrefix(t, "text/") || strings.HasSuffix(t, "+xml") || strings.HasSuffix(t, "+yaml") {
		return true
	}
	switch t {
	case "application/x-www-form-urlencoded", "application/xml", "application/yaml", "application/x-yaml", "application/x-ndjson", "application/jsonl", "application/graphql", "application/javascript":
		return true
	}
	return false
}

// jsonString writes a string without escaping what only HTML minds.
func jsonString(s string) (json.RawMessage, error) {
	var buf bytes.Buffer
	if err := encodeJSON(&buf, s); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// queryInput makes an object of the parameters of a request without a body: a string for each, and a list of strings for one that is repeated.
// Credentials are no longer among them.
func queryInput(u *url.URL) (json.RawMessage, error) {
	values, err := textQuery(u)
	if err != nil {
		return nil, err
	}
	input := make(map[string]any, len(values))
	for name, list := range values {
		if input[name] = list; len(list) == 1 {
			input[name] = list[0]
		}
	}
	return json.Marshal(input)
}

// textQuery returns the parameters of a URL that become part of an input, by the rules that hold for JSON: UTF-8, and no NUL in a name.
func textQuery(u *url.URL) (url.Values, error) {
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, core.Errorf(core.CodeInvalidRequest, "the query is not encoded as a form")
	}
	for name, list := range values {
		valid := utf8.ValidString(name) && !strings.Contains(name, "\x00")
		for _, v := range list {
			valid = valid && utf8.ValidString(v)
		}
		if !valid {
			return nil, core.Errorf(core.CodeInvalidRequest, "the query is not UTF-8, or has a name with NUL in it")
		}
	}
	return values, nil
}

// messageID reads the id that the sender of a webhook gives a message.
func messageID(values []string) (string, error) {
	const detail = "must be sent once and have 1 to 255 characters of visible ASCII"
	if len(values) == 0 {
		return "", nil
	}
	good := len(values) == 1 && values[0] != "" && len(values[0]) <= 255 && strings.IndexFunc(values[0], func(r rune) bool { return r <= ' ' || r > '~' }) < 0
	if !good {
		return "", invalidField(core.CodeInvalidRequest, inHeader+"Webhook-Id", detail)
	}
	return values[0], nil
}

// hookCodes are the codes a webhook can be answered with, besides those of every route.
var hookCodes = []core.Code{
	core.CodeKeyDisabled, core.CodeSourceNotAllowed, core.CodeWorkflowDisabled, core.CodeInvalidInput, core.CodeIdempotencyKeyReused, core.CodeQuotaExhausted,
	core.CodeConcurrencyLimited, core.CodeOverloaded, core.CodeDraining,
}

// describeHooks documents the webhook routes, which are not huma's.
func (s *Server) describeHooks() {
	accepted := append(slices.Clone(secured), map[string][]string{"webhook": {}})
	doc := s.api.OpenAPI()
	doc.Components.SecuritySchemes["webhook"] = &huma.SecurityScheme{
		Type: "apiKey", In: "header", Name: hookSignature[0],
		Description: "[Standard Webhooks](https://www.standardwebhooks.com): `v1,` and the base64 of HMAC-SHA-256 over `<webhook-id>.<webhook-timestamp>.<body>`, with the secret that the workflow's `trigger.webhook` names. Several are separated by spaces.",
	}
	text := &huma.Schema{Type: huma.TypeString}
	params := []*huma.Param{
		{Name: "workflow", In: "path", Required: true, Schema: text, Description: "Id, slug or alias, with an optional `@<version>`. A slash in a slug may be written as it is or as %2F."},
		{Name: "webhook-id", In: "header", Schema: text, Description: "Id of the message, for 24 hours: a second message with it, of the same sender and for the same workflow, finds the run of the first. 1 to 255 visible ASCII characters, without a dot where it is signed."},
		{Name: "webhook-timestamp", In: "header", Schema: text, Description: "Time of the signature in seconds since 1970, at most 300 seconds from now."},
		{Name: "Idempotency-Key", In: "header", Schema: text, Description: "As on the other trigger routes; webhook-id outweighs it."},
	}
	for _, method := range hookMethods {
		op := &huma.Operation{
			OperationID: strings.ToLower(method) + "-webhook", Method: method, Path: "/v1/hooks/{workflow}", Tags: []string{"Trigger"}, Security: accepted, Parameters: params,
			Summary: "Trigger a workflow by a webhook",
			Description: "For senders that cannot be told what to send: the body as it is is the input. Answers once the run is accepted. A workflow with `trigger.webhook` takes requests that are signed as it says; " +
				"every workflow takes the credentials it takes elsewhere, such as those of the hmac auth plugin.",
			Responses: map[string]*huma.Response{
				"200": {Description: "A message with this webhook-id, or a request with this Idempotency-Key, had started the run before.", Content: map[string]*huma.MediaType{typeJSON: {Schema: s.schema(HookAccepted{})}}},
				"202": {Description: "The run is accepted.", Content: map[string]*huma.MediaType{typeJSON: {Schema: s.schema(HookAccepted{})}}},
			},
		}
		if method == http.MethodGet {
			op.Description += " Here the input is an object of the query's parameters, a string for each and a list for one that is repeated. A signed message without a body has none."
		} else {
			free := &huma.MediaType{Schema: &huma.Schema{}}
			op.RequestBody = &huma.RequestBody{
				Description: "JSON is the input as it is. Text in UTF-8 (text/*, forms, XML, YAML) is a string. Any other type is a string of base64. A body without a type is the first of these that it can be, and none at all is an object of the query's parameters, unless the message is signed.",
				Content:     map[string]*huma.MediaType{typeJSON: free, "text/*": {Schema: text}, "*/*": free},
			}
		}
		for _, r := range op.Responses {
			r.Headers = map[string]*huma.Param{"Keyfire-Run-Id": textHeader("Id of the run."), "Location": textHeader("The run.")}
		}
		describeLimits(op.Responses["202"].Headers)
		op.Responses["200"].Headers["Idempotency-Replayed"] = textHeader("true when it was the Idempotency-Key by which the run was found.")
		s.describeErrors(op)
		doc.AddOperation(op)
	}
}
