package cli

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/server"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/trigger"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// callbacks says how ends of runs are told. secret reads a secret of an account.
func callbacks(cfg *Config, secret func(ctx context.Context, account, name string) (string, error)) trigger.CallbackConfig {
	client := wasm.NewClient(wasm.EgressConfig{Allow: cfg.EgressAllow}, cfg.CallbackAllow)
	return trigger.CallbackConfig{
		Check: func(url string) error { return client.Check(http.MethodPost, url) },
		Post: func(ctx context.Context, url string, header [][2]string, body []byte) (int, error) {
			return client.Send(ctx, http.MethodPost, url, header, body)
		},
		Secrets: func(ctx context.Context, account string) ([]string, error) {
			text, err := secret(ctx, account, core.CallbackSecret)
			if core.CodeOf(err) == core.CodeNotFound {
				return nil, nil
			}
			return strings.Fields(text), err
		},
		Data: server.CallbackData,
	}
}

// startRuns queues what the last server left unfinished and lets runs be executed.
func (s *system) startRuns(ctx context.Context, cfg *Config) error {
	// What is in a shared queue is not this server's alone to begin again; what is missing in it is looked for all the time.
	if s.shared == nil {
		n, err := s.trigger.Recover(ctx)
		if err != nil {
			return err
		}
		if n > 0 {
			s.log.Info("runs that had not ended are queued again", "runs", n)
		}
	}
	s.trigger.StartWorkers()
	s.trigger.StartSchedules()
	s.closers = append(s.closers, s.prune(cfg.Retention))
	return nil
}

// pruneEvery is how often history is cut down. The first time is soon after the start.
const pruneEvery = 10 * time.Minute

// prune cuts history down from time to time, until the function it returns is called.
func (s *system) prune(keep store.Retention) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for wait := time.Minute; ; wait = pruneEvery {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			began := time.Now()
			n, err := s.store.Prune(ctx, keep)
			switch {
			case err != nil && ctx.Err() == nil:
				s.log.Warn("history not cut down; trying again later", "error", err)
			case n > 0:
				s.log.Info("history cut down", "runs", n, "took", time.Since(began).String())
			}
		}
	})
	return func() error {
		cancel()
		running.Wait()
		return nil
	}
}
