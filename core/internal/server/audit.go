package server

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/core"
)

// AuditEvent is one row of the audit log.
type AuditEvent struct {
	Object    string    `json:"object" enum:"audit_event" doc:"What this is."`
	Seq       int64     `json:"seq" doc:"Position in the log, without gaps, in the order of commits."`
	ID        string    `json:"id"`
	Time      time.Time `json:"time"`
	Actor     string    `json:"actor" doc:"Who, namespaced." example:"uid:1000"`
	KeyID     string    `json:"key_id,omitempty" doc:"The key that was used."`
	SourceIP  string    `json:"source_ip,omitempty"`
	Action    string    `json:"action" doc:"What kind of object, then what was done to it." example:"key.create"`
	Target    string    `json:"target" doc:"Id of what was changed or asked for."`
	Outcome   string    `json:"outcome" enum:"ok,refused"`
	Reason    string    `json:"reason,omitempty" doc:"Code of a refusal, or the reason that was given."`
	RequestID string    `json:"request_id,omitempty"`
	TraceID   string    `json:"trace_id,omitempty"`
	Count     int64     `json:"count" doc:"How many refusals this row stands for; 1 everywhere else."`
}

func (s *Server) routeAudit() {
	register(s, huma.Operation{
		OperationID: "list-audit-events", Method: http.MethodGet, Path: "/v1/audit", Tags: []string{"Audit"},
		Summary: "Read the audit log", Description: "Newest first. Needs the scope audit:read.",
	}, nil, s.listAudit)
}

type auditParams struct {
	PageParams
	Action string    `query:"action" maxLength:"64" doc:"Only this action, such as key.create."`
	Actor  string    `query:"actor" maxLength:"256" doc:"Only what this actor did."`
	Target string    `query:"target" maxLength:"256" doc:"Only what concerns the object with this id."`
	After  time.Time `query:"after" doc:"Only events later than this."`
}

func (s *Server) listAudit(ctx context.Context, req *request, in *auditParams) (*listAnswer[AuditEvent], error) {
	if in.Action != "" {
		var e *core.Error
		if errors.As(core.CheckAction(in.Action), &e) {
			return nil, invalidField(e.Code, inQuery+"action", e.Message)
		}
	}
	l, err := s.Admin.AuditEvents(ctx, req.actor(), core.AuditFilter{Action: in.Action, Actor: in.Actor, Object: in.Target, After: in.After}, in.page())
	if err != nil {
		return nil, err
	}
	return listOf(req, l, func(e *core.AuditEvent) AuditEvent {
		return AuditEvent{
			Object: "audit_event", Seq: e.Seq, ID: e.ID, Time: e.Time.UTC(), Actor: e.Actor, KeyID: e.KeyID, SourceIP: e.SourceIP, Action: e.Action,
			Target: e.Object, Outcome: e.Outcome, Reason: e.Reason, RequestID: e.RequestID, TraceID: e.TraceID, Count: e.Count,
		}
	}), nil
}
