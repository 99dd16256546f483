package client

import (
	"context"
	"time"
)

// AuditEvent is one row of the audit log.
type AuditEvent struct {
	Seq       int64     `json:"seq"` // commit order, without gaps
	ID        string    `json:"id"`
	Time      time.Time `json:"time"`
	Actor     string    `json:"actor"` // namespaced: "key:key_01...", "uid:1000", "system"
	KeyID     string    `json:"key_id,omitempty"`
	SourceIP  string    `json:"source_ip,omitempty"`
	Action    string    `json:"action"`  // object first, then verb: "key.create"
	Target    string    `json:"target"`  // id of what was changed or asked for
	Outcome   string    `json:"outcome"` // "ok" or "refused"
	Reason    string    `json:"reason,omitempty"`
	RequestID string    `json:"request_id,omitempty"`
	TraceID   string    `json:"trace_id,omitempty"`
	Count     int64     `json:"count"` // how many refusals the row stands for
}

// AuditQuery narrows the audit log. Zero fields do not filter.
type AuditQuery struct {
	Action string
	Actor  string
	Target string // id of an object
	After  time.Time
	Page
}

// AuditEvents lists the audit log, newest first.
func (c *Client) AuditEvents(ctx context.Context, q AuditQuery) (*List[AuditEvent], error) {
	v := q.values()
	set(v, "action", q.Action)
	set(v, "actor", q.Actor)
	set(v, "target", q.Target)
	set(v, "after", formatTime(q.After))
	return list[AuditEvent](ctx, c, v, "v1", "audit")
}
