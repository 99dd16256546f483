package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/seal"
	"github.com/keyfire/keyfire/core/internal/store"
)

// sealEvery is how often new events of the audit log are sealed.
const sealEvery = 10 * time.Second

// sealAudit seals what is new in the audit log from now on, until the system is closed. Each server has seals of its own, of the whole log. A log that is not the one that was sealed
// is not sealed further and does not keep the server from serving: whoever reads the log of the server, or runs audit verify, is to find out.
func (s *system) sealAudit(ctx context.Context, dir *dataDir) error {
	f, err := seal.Open(dir.file(sealFile), s.pepper.SealKey, s.pepper.Newest())
	var problem *seal.Problem
	if errors.As(err, &problem) {
		s.sealBroken(err)
		return nil
	}
	if err != nil {
		return err
	}
	if n := f.Sealed(); n > 0 {
		last, err := s.store.AuditAfter(ctx, n-1, 1)
		if err != nil {
			return errors.Join(err, f.Close())
		}
		if len(last) == 0 || !f.Matches(&last[0]) {
			s.sealBroken(fmt.Errorf("event %d of the audit log is not the one that was sealed", n))
			return f.Close()
		}
	} else if err := s.sealsBegin(ctx); err != nil {
		return errors.Join(err, f.Close())
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sealing sync.WaitGroup
	sealing.Go(func() {
		tick := time.NewTicker(sealEvery)
		defer tick.Stop()
		there := true
		round := func() {
			s.sealNew(context.WithoutCancel(ctx), f)
			was := there
			if there = f.InPlace(dir.file(sealFile)); was && !there {
				s.log.Error(sealFile + " was removed or replaced while the server works, and new seals are lost with it: find out by whom, put a copy back if you have one, and start again")
			}
		}
		for going := true; going; {
			round()
			select {
			case <-ctx.Done():
				going = false
			case <-tick.C:
			}
		}
		round()
	})
	s.closers = append(s.closers, func() error { stop(); sealing.Wait(); return f.Close() })
	return nil
}

// sealsBegin says so when there are no seals of a log that is not new: whoever changes it and removes them leaves just that.
func (s *system) sealsBegin(ctx context.Context) error {
	first, err := s.store.AuditAfter(ctx, 0, 3)
	if err != nil {
		return err
	}
	mine := 1 // of this server's first start
	if len(first) > 0 && first[0].Action == core.ActionSessionShare {
		mine = 2
	}
	if len(first) > mine {
		s.log.Warn("there is no "+sealFile+" of what the audit log holds already, which is sealed as it is now: that is so on a new machine and after a restore, and otherwise somebody has removed it",
			"first_event", first[0].Time)
	}
	return nil
}

func (s *system) sealBroken(err error) {
	s.log.Error("the audit log and its seals do not belong together, and nothing is sealed any more: run keyfire audit verify; after a restore from another directory, move "+sealFile+" away and start again",
		"error", err)
}

// sealNew seals what is not sealed yet.
func (s *system) sealNew(ctx context.Context, f *seal.File) {
	ctx, cancel := context.WithTimeout(ctx, sealEvery)
	defer cancel()
	for {
		events, err := s.store.AuditAfter(ctx, f.Sealed(), seal.MaxEvents)
		if err == nil && len(events) > 0 {
			err = f.Append(events, time.Now())
		}
		if err != nil {
			s.log.Warn("the audit log was not sealed; trying again soon", "error", err)
			return
		}
		if len(events) < seal.MaxEvents {
			return
		}
	}
}

func (a *app) auditVerify() *cobra.Command {
	var seals, head string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that the audit log is as it was sealed, while servers work on",
		Long: `Compare the audit log in the database with the seals that the server wrote to audit.seals in --data, and name the first
event that was changed, removed, added or moved. It reads both as they are and needs no server.

The key of the seals is made from pepper.json. Who can change the database, pepper.json and audit.seals can make a log
that fits: keep a copy of audit.seals, or of the head that this command prints, on another machine, and check with it.`,
		Example: "  keyfire audit verify\n  keyfire audit verify --seals /mnt/worm/audit.seals",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, sc, err := a.presentDatabase(cmd)
			if err != nil {
				return err
			}
			rep, err := verifyAudit(cmd.Context(), &dataDir{path: cfg.Data}, sc, seals, head)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"object": "audit_check", "sealed": rep.Sealed, "unsealed": rep.Unsealed, "sealed_at": rep.At, "head": rep.Head})
			}
			_, err = fmt.Fprintf(a.Stdout, "%d events are as they were sealed, the last at %s; %d are not sealed yet\nhead %s\n", rep.Sealed, timeText(&rep.At), rep.Unsealed, rep.Head)
			return err
		},
	}
	cmd.Flags().StringVar(&seals, "seals", "", "another copy of the seals (default: "+sealFile+" in the data directory)")
	cmd.Flags().StringVar(&head, "head", "", "a head that was printed before: the seals must still go through it")
	for _, s := range settings(a.Environ) {
		if s.key == "store" {
			cmd.Flags().String(s.flag(), s.value, flagUsage(s))
		}
	}
	return cmd
}

// sealsAfterRestore compares the audit log that was just restored with the seals in the data directory. Seals that go on where it ends are of what happened after the backup: they
// are kept under another name, so that the server seals the log anew. A difference before that is nothing that a restore makes, and is left for people to look at.
func (a *app) sealsAfterRestore(ctx context.Context, data string, sc store.Config) error {
	dir := &dataDir{path: data}
	if _, err := os.Stat(dir.file(sealFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := verifyAudit(ctx, dir, sc, "", "")
	var problem *seal.Problem
	if err == nil || errors.Is(err, fs.ErrNotExist) { // the pepper is still to come
		return nil
	}
	if !errors.As(err, &problem) {
		return err
	}
	var restored int64 // the event of the restore, the last one
	err = store.ReadAudit(ctx, sc, func(next func() (*core.AuditEvent, error)) error {
		for {
			ev, err := next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			restored = ev.Seq
		}
	})
	if err != nil {
		return err
	}
	if problem.Seq < restored {
		a.note("what was restored is not what was sealed: %v; find out why before you move %s away and start the server", problem, dir.file(sealFile))
		return nil
	}
	kept := dir.file(sealFile) + ".before-" + time.Now().UTC().Format("20060102T150405Z")
	if err := os.Rename(dir.file(sealFile), kept); err != nil {
		return fmt.Errorf("the restore is done, and the seals of what happened after the backup could not be renamed: %w", err)
	}
	a.note("the audit log is as it was sealed up to event %d; the seals of what happened after that are kept in %s", restored-1, kept)
	return a.arrived(ctx, sc, core.ActionStoreRestore, filepath.Base(kept), fmt.Sprintf("the backup ends with event %d, and the seals of what happened after it were put aside", restored-1))
}

// verifyAudit checks the audit log of a database. Only the path of dir is used.
func verifyAudit(ctx context.Context, dir *dataDir, sc store.Config, seals, head string) (rep seal.Report, err error) {
	// Without it, reading the pepper could make one.
	if _, err := os.Stat(dir.file(pepperFile)); err != nil {
		return rep, fmt.Errorf("pepper: %w", err)
	}
	pepper, err := dir.pepper()
	if err != nil {
		return rep, err
	}
	if seals == "" {
		seals = dir.file(sealFile)
	}
	f, err := os.Open(seals)
	if errors.Is(err, fs.ErrNotExist) {
		return rep, fmt.Errorf("%s is missing: a server makes it when it starts, so either none has, or somebody has removed it", seals)
	}
	if err != nil {
		return rep, fmt.Errorf("seals: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return rep, fmt.Errorf("seals: %w", err)
	}
	err = store.ReadAudit(ctx, sc, func(next func() (*core.AuditEvent, error)) (err error) {
		rep, err = seal.Check(io.NewSectionReader(f, 0, info.Size()), pepper.SealKey, next, head)
		return err
	})
	var problem *seal.Problem
	if errors.As(err, &problem) {
		return rep, fmt.Errorf("the audit log is not as it was sealed: %w", err)
	}
	return rep, err
}
