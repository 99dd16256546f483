package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/core"
)

// metadataFilter precedes the name of a metadata member in a query parameter.
const metadataFilter = "metadata."

func (s *Server) routeRuns() {
	tags := []string{"Runs"}
	register(s, huma.Operation{
		OperationID: "list-runs", Method: http.MethodGet, Path: runsPath, Tags: tags,
		Summary: "List runs", Description: "Newest first, without input, output and steps. Needs the scope runs:read.",
		Parameters: []*huma.Param{{
			Name: metadataFilter + "{name}", In: "query", Schema: &huma.Schema{Type: huma.TypeString},
			Description: "Only runs whose metadata has this value under {name}, such as `metadata.crm_id=42`. May be given for several names.",
		}},
	}, nil, s.listRuns)
	register(s, huma.Operation{
		OperationID: "get-run", Method: http.MethodGet, Path: "/v1/runs/{run}", Tags: tags,
		Summary:     "Show a run",
		Description: "A run that failed is found as well as any other. A key without the scope runs:read finds the runs that it started; any other run does not exist for it.",
	}, nil, s.getRun)
	register(s, huma.Operation{
		OperationID: "get-step", Method: http.MethodGet, Path: "/v1/runs/{run}/steps/{step}", Tags: tags,
		Summary: "Show a step of a run", Description: "With its input, output, attempts and log. Access as for the run.",
	}, nil, s.getStep)
	register(s, huma.Operation{
		OperationID: "get-tape", Method: http.MethodGet, Path: "/v1/runs/{run}/steps/{step}/tape", Tags: tags,
		Summary: "Read the tape of a step",
		Description: "What an attempt learned from outside, from which `keyfire replay` executes it again, offline. There is one when the node has `record` in its workflow and the attempt's " +
			"`tape` is `kept`. Secrets are not on it; what services answered is. Needs the scope workflows:write, and runs:read.",
	}, nil, s.getTape)
	register(s, huma.Operation{
		OperationID: "get-run-logs", Method: http.MethodGet, Path: "/v1/runs/{run}/logs", Tags: tags,
		Summary: "Read the log of a run", Description: "What the nodes wrote to their logs, in the order of time. Access as for the run.",
	}, nil, s.getLogs)
	found := operation(s.api.OpenAPI(), http.MethodGet, "/v1/runs/{run}").Responses
	found["200"].Headers["Preference-Applied"] = textHeader("What of Prefer was applied.")
	found["304"] = &huma.Response{Description: "The run has not changed since the answer with the ETag in If-None-Match.", Headers: found["200"].Headers}
}

type listRunsParams struct {
	PageParams
	Workflow     string    `query:"workflow" maxLength:"512" doc:"Only runs of this workflow: id, slug or alias."`
	Status       string    `query:"status" enum:"scheduled,queued,running,waiting,cancelling,succeeded,failed,timed_out,cancelled,interrupted" doc:"Only runs in this state."`
	Key          string    `query:"key" maxLength:"64" doc:"Only runs that the key with this id started."`
	TraceID      string    `query:"trace_id" maxLength:"32" doc:"Only runs of this trace."`
	CreatedAfter time.Time `query:"created_after" doc:"Only runs accepted later than this."`
}

func (s *Server) listRuns(ctx context.Context, req *request, in *listRunsParams) (*listAnswer[Run], error) {
	f := core.RunFilter{Workflow: in.Workflow, Status: core.RunStatus(in.Status), KeyID: in.Key, TraceID: in.TraceID, CreatedAfter: in.CreatedAfter}
	for name, values := range req.c.Request.URL.Query() {
		member, ok := strings.CutPrefix(name, metadataFilter)
		if !ok {
			continue
		}
		if member == "" || len(values) > 1 || len(f.Metadata) == maxMetadata {
			e := core.Errorf(core.CodeInvalidRequest, "a metadata filter is metadata.<name>=<value>, once for each name")
			e.Fields = []core.Field{{Pointer: inQuery + clip(name), Detail: "must be metadata.<name>=<value>, once for each name"}}
			return nil, e
		}
		if f.Metadata == nil {
			f.Metadata = make(map[string]string)
		}
		f.Metadata[member] = values[0]
	}
	l, err := s.Trigger.Runs(ctx, req.principal, f, in.page())
	if err != nil {
		return nil, err
	}
	return listOf(req, l, runItem), nil
}

// RunParams names a run.
type RunParams struct {
	Run string `path:"run" doc:"Id of the run." maxLength:"64"`
}

type getRunParams struct {
	RunParams
	IfNoneMatch string `header:"If-None-Match" doc:"ETags of earlier answers." maxLength:"1024"`
	Prefer      string `header:"Prefer" doc:"wait=N answers when the run has ended, or after N seconds." maxLength:"256"`
}

type getRunAnswer struct {
	Status    int
	ETag      string `header:"ETag" doc:"Changes whenever the run does."`
	RunID     string `header:"Keyfire-Run-Id" doc:"Id of the run."`
	RunStatus string `header:"Keyfire-Run-Status" doc:"State of the run."`
	Body      *Run
}

func (s *Server) getRun(ctx context.Context, req *request, in *getRunParams) (*getRunAnswer, error) {
	prefer := parsePrefer(req.c.Request.Header["Prefer"], s.MaxWait)
	prefer.async = false // it is no wish one can have here
	wait := ctx
	if prefer.waiting {
		limited, cancel := context.WithTimeout(ctx, prefer.wait)
		defer cancel()
		wait = limited
	}
	run, err := s.findRun(ctx, req, in.Run)
	if err == nil && prefer.waiting && !run.Status.Terminal() {
		run, err = s.Trigger.RunAfterWait(wait, req.principal, in.Run)
	}
	prefer.applied(req.c)
	if err != nil {
		return nil, err
	}
	body := runBody(run)
	encoded, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(encoded)
	a := &getRunAnswer{
		Status: http.StatusOK, ETag: `"` + base64.RawURLEncoding.EncodeToString(sum[:18]) + `"`,
		RunID: run.ID, RunStatus: string(run.Status), Body: &body,
	}
	if !req.inQuery {
		req.c.Header("Cache-Control", "private, no-cache")
	}
	if matches(in.IfNoneMatch, a.ETag) {
		a.Status, a.Body = http.StatusNotModified, nil
	}
	return a, nil
}

// matches reports whether an If-None-Match header names an entity tag.
func matches(header, tag string) bool {
	for t := range strings.SplitSeq(header, ",") {
		if t = strings.TrimPrefix(strings.TrimSpace(t), "W/"); t == tag || t == "*" {
			return true
		}
	}
	return false
}

func (s *Server) findRun(ctx context.Context, req *request, id string) (*core.Run, error) {
	run, err := s.Trigger.Run(ctx, req.principal, id)
	if err != nil {
		return nil, err
	}
	req.found(run)
	return run, nil
}

type stepParams struct {
	RunParams
	Step string `path:"step" doc:"Id of the node." maxLength:"64"`
}

type getStepAnswer struct {
	RunID string `header:"Keyfire-Run-Id" doc:"Id of the run."`
	Body  Step
}

func (s *Server) getStep(ctx context.Context, req *request, in *stepParams) (*getStepAnswer, error) {
	run, err := s.findRun(ctx, req, in.Run)
	if err != nil {
		return nil, err
	}
	for i := range run.Steps {
		if run.Steps[i].ID == in.Step {
			return &getStepAnswer{RunID: run.ID, Body: stepBody(run.ID, &run.Steps[i])}, nil
		}
	}
	return nil, core.Errorf(core.CodeNotFound, "the run has no such step")
}

type tapeParams struct {
	RunParams
	Step    string `path:"step" doc:"Id of the node." maxLength:"64"`
	Attempt int    `query:"attempt" minimum:"1" doc:"Which attempt of the step; absent is the last one with a tape."`
}

type tapeAnswer struct {
	RunID string          `header:"Keyfire-Run-Id" doc:"Id of the run."`
	Body  json.RawMessage `doc:"To be handed to keyfire replay as it is; its format may change with any version."`
}

func (s *Server) getTape(ctx context.Context, req *request, in *tapeParams) (*tapeAnswer, error) {
	tape, err := s.Trigger.Tape(ctx, req.principal, in.Run, in.Step, in.Attempt)
	if err != nil {
		return nil, err
	}
	return &tapeAnswer{RunID: in.Run, Body: tape}, nil
}

type logParams struct {
	RunParams
	Step   string `query:"step" maxLength:"64" doc:"Only lines of this node."`
	Level  string `query:"level" enum:"debug,info,warn,error" doc:"Only lines of this level or a more serious one."`
	Limit  int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"How many lines to return at most."`
	Cursor string `query:"cursor" maxLength:"32" doc:"next_cursor of the previous page; absent is the first page."`
}

var levels = []string{"debug", "info", "warn", "error"}

func (s *Server) getLogs(ctx context.Context, req *request, in *logParams) (*listAnswer[RunLogLine], error) {
	from := 0
	if in.Cursor != "" {
		var err error
		if from, err = strconv.Atoi(in.Cursor); err != nil || from < 0 {
			return nil, invalidField(core.CodeInvalidRequest, inQuery+"cursor", "must be the next_cursor of the previous page")
		}
	}
	run, err := s.findRun(ctx, req, in.Run)
	if err != nil {
		return nil, err
	}
	if in.Step != "" && len(run.Steps) > 0 && !slices.ContainsFunc(run.Steps, func(st core.Step) bool { return st.ID == in.Step }) {
		return nil, invalidField(core.CodeInvalidRequest, inQuery+"step", "is no step of this run, which has "+stepNames(run))
	}
	lines := logOf(run, in.Step, in.Level)
	page := core.List[RunLogLine]{Items: lines[min(from, len(lines)):]}
	if len(page.Items) > in.Limit {
		page.Items = page.Items[:in.Limit]
		page.Next = strconv.Itoa(from + in.Limit)
	}
	return listOf(req, page, func(l *RunLogLine) RunLogLine { return *l }), nil
}

// stepNames lists the first steps of a run.
func stepNames(run *core.Run) string {
	names := make([]string, 0, 10)
	for i := range run.Steps[:min(len(run.Steps), cap(names))] {
		names = append(names, run.Steps[i].ID)
	}
	text := strings.Join(names, ", ")
	if more := len(run.Steps) - len(names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// logOf returns the lines of a run's log, in the order of time, of one step if it is named and from a level on.
func logOf(run *core.Run, step, level string) []RunLogLine {
	least := max(slices.Index(levels, level), 0)
	var lines []RunLogLine
	for i := range run.Steps {
		st := &run.Steps[i]
		if step != "" && st.ID != step {
			continue
		}
		for _, a := range st.Attempts {
			for _, l := range a.Log {
				if slices.Index(levels, l.Level) >= least || least == 0 {
					lines = append(lines, RunLogLine{Step: st.ID, Attempt: a.Number, Time: l.Time.UTC(), Level: l.Level, Message: l.Message})
				}
			}
		}
	}
	slices.SortStableFunc(lines, func(a, b RunLogLine) int { return a.Time.Compare(b.Time) })
	return lines
}
