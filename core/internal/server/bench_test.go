package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// memory is a trigger.Store without a disk, so that the benchmark shows the server and not the database.
type memory struct {
	trigger.Store
	workflow core.Workflow
	version  core.Version
	key      *auth.Key
}

func (m *memory) Workflow(context.Context, string, string) (core.Workflow, error) {
	return m.workflow, nil
}

func (m *memory) Version(context.Context, string, string, int) (core.Version, error) {
	return m.version, nil
}

func (m *memory) KeyBySecret(_ context.Context, _ string, proved func(*auth.FoundSecret) bool) (*auth.Key, error) {
	if k := m.key; proved(&auth.FoundSecret{PublicID: k.PublicID, KeyID: k.ID, Hash: k.Hash, Pepper: k.Pepper}) {
		return k, nil
	}
	return nil, nil
}
func (m *memory) FinishRun(context.Context, *core.Run, ...core.RunEvent) error { return nil }
func (m *memory) TouchKeys(context.Context, map[string]time.Time) error        { return nil }
func (m *memory) Audit(context.Context, ...core.AuditEvent) error              { return nil }
func (m *memory) RecordKeyUsage(context.Context, []core.KeyUsage, []core.SecretUse) error {
	return nil
}

func (m *memory) AccountOpen(context.Context, string) error { return nil }

func (m *memory) Admit(_ context.Context, a core.Admission) (core.Admitted, error) {
	return core.Admitted{RunID: a.Run.ID}, nil
}

// BenchmarkTrigger compares the whole trigger route, with a store and an engine that do nothing, with a bare gin handler that echoes the body.
func BenchmarkTrigger(b *testing.B) {
	const body = `{"input":{"customer":"acme","amount":12.5},"metadata":{"crm_id":"42"}}`
	serve := func(b *testing.B, h http.Handler, target, key string) {
		b.Helper()
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				req := httptest.NewRequest(http.MethodPost, target, strings.NewReader(body))
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Authorization", "Bearer "+key)
				w := httptest.NewRecorder()
				h.ServeHTTP(w, req)
				if w.Code != http.StatusOK {
					b.Fatalf("%d %s", w.Code, w.Body)
				}
			}
		})
	}
	b.Run("gin-echo", func(b *testing.B) {
		gin.SetMode(gin.ReleaseMode)
		e := gin.New()
		e.POST("/echo", func(c *gin.Context) {
			data, err := io.ReadAll(c.Request.Body)
			if err != nil {
				c.Status(http.StatusBadRequest)
				return
			}
			c.Data(http.StatusOK, "application/json", data)
		})
		serve(b, e, "/echo", "x")
	})
	b.Run("trigger", func(b *testing.B) {
		base := setup(b)
		w := base.publish("open", "")
		text := base.globalKey()
		v, err := base.store.Version(context.Background(), w.Account, w.ID, 1)
		base.must(err)
		k, err := base.store.KeyBySecret(context.Background(), text[4:16], func(*auth.FoundSecret) bool { return true })
		base.must(err)
		m := &memory{workflow: w, version: v, key: k}
		tracer := noop.NewTracerProvider().Tracer("")
		service, err := trigger.New(trigger.Config{
			Store: m, Chain: auth.NewChain(tracer, auth.NewKeyring(m, base.pepper, time.Now)), Executor: base.executor, Tracer: tracer, NewID: base.ids,
		})
		base.must(err)
		defer service.Close()
		s, err := New(Config{Trigger: service, Admin: base.admin, Tracer: tracer, NewID: base.ids, Logger: slog.New(slog.DiscardHandler)})
		base.must(err)
		b.ResetTimer()
		serve(b, s.Handler(), "/v1/workflows/open/runs", text)
	})
}
