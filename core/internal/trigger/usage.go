package trigger

import (
	"context"
	"sync"

	"github.com/keyfire/keyfire/core"
)

// maxUsage bounds the counts that are held between two flushes. Beyond it, a value that is not counted yet is counted under "".
const maxUsage = 20_000

// usage counts what keys were used for. It is off the hot path: a server that is killed loses its last half minute, of these counts only; a key's
// counter of runs is part of their admission.
type usage struct {
	mu      sync.Mutex
	counts  map[core.KeyUsage]*core.KeyUsage // by all but Count and LastAt
	secrets map[string]core.SecretUse        // by public id, of secrets that exist
}

func newUsage() *usage {
	return &usage{counts: make(map[core.KeyUsage]*core.KeyUsage), secrets: make(map[string]core.SecretUse)}
}

// secret notes that a secret proved a key.
func (u *usage) secret(use core.SecretUse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.secrets[use.PublicID] = use
}

// run counts a run that was admitted.
func (u *usage) run(run *core.Run, agent string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, by := range [...]struct {
		kind  core.UsageKind
		value string
	}{{core.UsageRuns, ""}, {core.UsageWorkflow, run.Workflow.ID}, {core.UsageSource, run.Trigger.SourceIP}, {core.UsageAgent, agent}} {
		k := core.KeyUsage{Account: run.Account, KeyID: run.Trigger.KeyID, Day: run.CreatedAt.Unix() / 86400, Kind: by.kind, Value: by.value}
		c := u.counts[k]
		if c == nil && len(u.counts) >= maxUsage {
			k.Value = ""
			c = u.counts[k]
		}
		if c == nil {
			c = &core.KeyUsage{Account: k.Account, KeyID: k.KeyID, Day: k.Day, Kind: k.Kind, Value: k.Value}
			u.counts[k] = c
		}
		c.Count++
		c.LastAt = run.CreatedAt
	}
}

func (u *usage) take() (counts []core.KeyUsage, secrets []core.SecretUse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range u.counts {
		counts = append(counts, *c)
	}
	for _, s := range u.secrets {
		secrets = append(secrets, s)
	}
	clear(u.counts)
	clear(u.secrets)
	return counts, secrets
}

// FlushUsage writes the use of keys that is counted so far, which otherwise happens twice a minute. Counts that cannot be written within flushWithin are lost.
// They are those of all keys, so a caller that goes away does not stop it.
func (s *Service) FlushUsage(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushWithin)
	defer cancel()
	counts, secrets := s.usage.take()
	return s.Store.RecordKeyUsage(ctx, counts, secrets)
}
