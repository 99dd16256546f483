package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// TestDiskFullD4 fills a small disk under the store. In between, keys can still be revoked and workflows closed.
func TestDiskFullD4(t *testing.T) {
	inChild(fillDisk)
	t.Parallel()
	cmd := child(t, t.TempDir())
	// A file system of its own needs a mount name space, and that needs a user name space or root.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.Output()
	if errors.Is(err, syscall.EPERM) || cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == exitNoMount {
		t.Skipf("NOT TESTED: a full disk. This process may not mount a file system (%v)", err)
	}
	if err != nil || !strings.Contains(string(out), regained) {
		t.Fatalf("%v\n%s", err, out)
	}
}

const (
	exitNoMount = 77
	reserved    = 2 << 20
)

func fillDisk(dir string) error {
	// Private, so that the mount is seen in this name space only and goes away with it.
	err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	if err == nil {
		err = syscall.Mount("keyfire-test", dir, "tmpfs", 0, "size=16m,mode=0700")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitNoMount)
	}
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, "keyfire.db"), Reserve: reserved})
	if err != nil {
		return err
	}
	defer s.Close()
	control := func(object string) core.AuditEvent {
		ev := accepted(object)
		ev.Action = core.ActionKeyCreate
		return ev
	}
	for i := range 100 {
		k := key(fmt.Sprintf("key_%d", i), 0)
		if err := s.CreateKey(ctx, k, control(k.ID)); err != nil {
			return err
		}
	}
	_, _, err = s.PublishWorkflow(ctx, core.Publication{
		Account: core.DefaultAccount, Workflow: core.Workflow{ID: "wf_1", Slug: "greet", Enabled: true}, Version: core.Version{Digest: "sha256:1"},
	}, control("wf_1"))
	if err != nil {
		return err
	}

	filler := filepath.Join(dir, "filler")
	reserve := filepath.Join(dir, "keyfire.db.reserve")
	fill := func() error {
		f, err := os.Create(filler)
		if err != nil {
			return err
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		return nil
	}
	revoke := func() error {
		if _, err := os.Stat(reserve); err != nil {
			return fmt.Errorf("the space set aside: %w", err)
		}
		for i := range 100 {
			id := fmt.Sprintf("key_%d", i)
			if _, err := s.RevokeKey(ctx, core.DefaultAccount, id, "", control(id)); err != nil {
				return fmt.Errorf("revoke key %d on a full disk: %w", i, err)
			}
		}
		if _, err := s.SetWorkflowEnabled(ctx, core.DefaultAccount, "greet", false, control("wf_1")); err != nil {
			return fmt.Errorf("close a workflow on a full disk: %w", err)
		}
		if k, err := s.Key(ctx, core.DefaultAccount, "key_99"); err != nil || k.RevokedAt.IsZero() {
			return fmt.Errorf("key revoked on a full disk reads back as %+v, %w", k, err)
		}
		if _, err := s.SetWorkflowEnabled(ctx, core.DefaultAccount, "greet", true, control("wf_1")); core.CodeOf(err) != core.CodeStoreUnavailable {
			return fmt.Errorf("open a workflow on a full disk: %w, want store_unavailable", err)
		}
		if _, err := os.Stat(reserve); err == nil {
			return errors.New("the space set aside was not used")
		}
		return nil
	}
	if err := loseAndRegainSpace(s, fill, func() error { return os.Remove(filler) }, revoke); err != nil {
		return err
	}
	if info, err := os.Stat(reserve); err != nil || info.Size() != reserved {
		return fmt.Errorf("the space set aside was not set aside again: %w", err)
	}
	// A server that ends while the disk is full can be started again, and a key revoked.
	fresh := key("key_fresh", 0)
	if err := s.CreateKey(ctx, fresh, control(fresh.ID)); err != nil {
		return err
	}
	if err := errors.Join(s.Close(), fill()); err != nil {
		return err
	}
	if s, err = store.Open(ctx, store.Config{Path: filepath.Join(dir, "keyfire.db"), Reserve: reserved}); err != nil {
		return fmt.Errorf("start on a full disk: %w", err)
	}
	defer s.Close()
	if _, err := s.RevokeKey(ctx, core.DefaultAccount, fresh.ID, "", control(fresh.ID)); err != nil {
		return fmt.Errorf("revoke a key after a start on a full disk: %w", err)
	}
	return nil
}
