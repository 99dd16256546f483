package store

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// TestQueryPlans fails when a query reads more than it must: a whole table, or rows that are sorted afterwards.
func TestQueryPlans(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	explain := func(query string, args ...any) string {
		rows, err := s.bulk.QueryContext(context.Background(), "explain query plan "+query, args...)
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		defer rows.Close()
		var plan []string
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return strings.Join(plan, "; ")
	}
	page := func(query string, args []any, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return explain(query, args...)
	}
	runs := func(f core.RunFilter) string {
		l := runListing("acct", f)
		return page(l.query(s.seal, 50, s.seal.encode(l.name, "acct", "run_1")))
	}
	events := func(f core.AuditFilter) string {
		l := auditListing("acct", f)
		return page(l.query(s.seal, 50, s.seal.encode(l.name, "acct", "7")))
	}
	args := func(n int) []any {
		a := make([]any, n)
		for i := range a {
			a[i] = "1"
		}
		return a
	}
	pk := "INDEX sqlite_autoindex_"
	for name, c := range map[string]struct{ plan, want string }{
		"runs":                {runs(core.RunFilter{}), pk + "runs_1 (account=? AND id<?)"},
		"runs by workflow":    {runs(core.RunFilter{Workflow: "w"}), "INDEX runs_by_workflow (account=? AND workflow_id=? AND id<?)"},
		"runs by key":         {runs(core.RunFilter{KeyID: "k"}), "INDEX runs_by_key (key_id=? AND id<?)"},
		"runs by status":      {runs(core.RunFilter{Status: core.RunFailed}), "INDEX runs_not_succeeded (status=? AND account=? AND id<?)"},
		"succeeded runs":      {runs(core.RunFilter{Status: core.RunSucceeded}), pk + "runs_1 (account=? AND id<?)"},
		"runs by trace":       {runs(core.RunFilter{TraceID: "t"}), pk + "runs_1 (account=? AND id=?); LIST SUBQUERY 1; SEARCH runs USING COVERING INDEX runs_by_workflow (account=?)"},
		"runs by metadata":    {runs(core.RunFilter{Metadata: map[string]string{"a": "b"}}), "COVERING INDEX sqlite_autoindex_run_metadata_1 (account=? AND name=? AND value=?)"},
		"runs by time":        {runs(core.RunFilter{CreatedAfter: time.Unix(1, 0)}), pk + "runs_1 (account=? AND id>? AND id<?)"},
		"audit":               {events(core.AuditFilter{}), "INDEX audit_by_account (account=? AND seq<?)"},
		"audit by object":     {events(core.AuditFilter{Object: "o"}), "INDEX audit_by_object (object=? AND seq<?)"},
		"key by secret":       {explain(sqlProof, args(1)...), "SEARCH k USING INTEGER PRIMARY KEY (rowid>?); SEARCH s USING COVERING INDEX key_secrets_replaced (lookup>?)"},
		"proved key":          {explain(sqlKeyRest, args(1)...), "SEARCH k USING INTEGER PRIMARY KEY (rowid=?)"},
		"a key's secrets":     {explain(sqlKeySecrets, args(3)...), "INDEX key_secrets_by_key (key_id=?)"},
		"running runs":        {explain(sqlRunning, args(2)...), pk + "key_running_1 (key_id=?); SEARCH r USING INDEX sqlite_autoindex_runs_1 (account=? AND id=?)"},
		"usage":               {explain(sqlUsage, args(3)...), pk + "key_usage_1 (key_id=? AND day>?)"},
		"old usage":           {explain(sqlUsageSweep, args(2)...), "key_usage_by_day (day<?)"},
		"old refusals":        {explain(sqlVerdictSweep, args(2)...), "refusals_by_time (time<?)"},
		"origin":              {explain(sqlOriginKnown, args(2)...), pk + "key_origins_1 (origin=?)"},
		"key":                 {explain(sqlKey, args(2)...), "INDEX"},
		"workflow by name":    {explain(sqlWorkflowByName, args(2)...), pk + "workflow_names_1 (account=? AND name=?); SEARCH w USING INDEX sqlite_autoindex_workflows_1 (account=? AND id=?)"},
		"version":             {explain(sqlVersion, args(3)...), pk + "versions_1 (account=? AND workflow_id=? AND version=?)"},
		"module":              {explain(sqlModuleBytes, args(2)...), pk + "modules_1 (account=? AND digest=?)"},
		"run":                 {explain(sqlRun, args(2)...), pk + "runs_1 (account=? AND id=?)"},
		"steps":               {explain(sqlSteps, args(2)...), pk + "run_steps_1 (account=? AND run_id=?)"},
		"tape":                {explain(sqlTape, args(4)...), pk + "run_tapes_1 (account=? AND run_id=? AND step=? AND attempt=?)"},
		"documents":           {explain(sqlDocuments, args(2)...), pk + "run_documents_1 (account=? AND run_id=?)"},
		"charge":              {explain(sqlCharge, args(5)...), "INDEX"},
		"first charge":        {explain(sqlChargeFirst, args(8)...), "INDEX"},
		"runs of an account":  {strings.ReplaceAll(explain(sqlAccountRunning, args(2)...), "SCAN open", "as many as the limit"), "INDEX runs_not_succeeded (status=? AND account=?)"},
		"runs under way":      {explain(sqlRunsUnderWay, args(4)...), "INDEX runs_not_succeeded (status=? AND account=?)"},
		"deleted workflows":   {explain(sqlWorkflowsGone, args(4)...), "INDEX workflows_deleted"},
		"runs of a workflow":  {strings.ReplaceAll(explain(sqlWorkflowRuns, args(2)...), "SCAN CONSTANT ROW", ""), "INDEX runs_open (account=? AND workflow_id=?)"},
		"workflow open":       {explain(sqlWorkflowOpen, args(2)...), pk + "workflows_1 (account=? AND id=?)"},
		"idempotency":         {explain(sqlIdempotency, args(5)...), pk + "idempotency_1 (account=? AND principal=? AND workflow_id=? AND key=?)"},
		"expired keys":        {explain(sqlIdempotencySweep, args(2)...), "INDEX idempotency_by_expiry (expires_at<?)"},
		"runs left":           {strings.ReplaceAll(explain(sqlRunsLeft, 200, "srv_1", 0, "running"), "SCAN servers", "a handful of servers"), "INDEX runs_not_succeeded (status=?)"},
		"open runs":           {explain(sqlRunsOpen, args(4)...), "INDEX runs_open"},
		"count of open runs":  {explain(sqlRunsOpenCount, args(2)...), "INDEX runs_open (account=? AND workflow_id=?)"},
		"oldest open runs":    {explain(sqlRunsOpenOldest, args(4)...), "INDEX runs_open (account=? AND workflow_id=?)"},
		"events":              {explain(sqlEvents, args(4)...), pk + "run_events_1 (account=? AND run_id=?)"},
		"last event":          {explain(sqlEventsLast, args(2)...), pk + "run_events_1 (account=? AND run_id=?)"},
		"dedupe":              {explain(sqlDedupe, args(3)...), pk + "run_dedupe_1 (account=? AND workflow_id=? AND key=?)"},
		"due callbacks":       {explain(sqlCallbacks+fmt.Sprintf(sqlCallbacksDue, 1, 2), args(2)...), "INDEX callbacks_due (next_at>? AND next_at<?)"},
		"callbacks of a run":  {explain(sqlCallbacksReady, args(3)...), "INDEX callbacks_by_run (account=? AND run_id=?)"},
		"runs to prune":       {explain(sqlPruneOld, args(4)...), "INDEX runs_by_workflow (account=? AND workflow_id=? AND id<?)"},
		"a scheduled time":    {explain(sqlTick, args(4)...), pk + "schedule_ticks_1 (account=? AND workflow_id=? AND name=? AND tick=?)"},
		"last audit event":    {explain(sqlAuditLast), "SEARCH audit"},
		"end of a run":        {explain(sqlRunFinish, args(9)...), pk + "runs_1 (account=? AND id=?)"},
		"names of a workflow": {explain(sqlNamesDelete, args(2)...), "INDEX workflow_names_by_workflow (account=? AND workflow_id=?)"},
	} {
		if !strings.Contains(c.plan, c.want) {
			t.Errorf("%s: plan is %q, want %q in it", name, c.plan, c.want)
		}
		if strings.Contains(c.plan, "TEMP B-TREE") && name != "runs by trace" && name != "runs by metadata" && name != "a key's secrets" && name != "usage" {
			t.Errorf("%s: sorts its rows: %q", name, c.plan)
		}
		if strings.Contains(c.plan, "SCAN") {
			t.Errorf("%s: reads a whole table or index: %q", name, c.plan)
		}
	}
}
