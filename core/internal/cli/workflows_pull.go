package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) workflowsVersions() *cobra.Command {
	var page client.Page
	cmd := &cobra.Command{
		Use:   "versions WORKFLOW",
		Short: "List the versions of a workflow, newest first, and who published them",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.Version], error) {
				return s.Versions(ctx, args[0], page)
			}, tableOf(a, []string{"VERSION", "PUBLISHED", "BY", "DIGEST"}, func(v *client.Version) []string {
				return []string{strconv.Itoa(v.Version), timeText(&v.CreatedAt), v.CreatedBy, v.Digest}
			}))
		},
	}
	pageFlags(cmd, &page)
	return cmd
}

func (a *app) workflowsPull() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "pull WORKFLOW DIRECTORY",
		Short: "Save a workflow's file and modules as they were published, for apply, diff or another server",
		Long: `Save a published workflow, named by name, id or alias, with an optional @version, in a directory: its file as workflow.yaml (or workflow.json), and beside it the modules
that the file names by path. What apply publishes from there is the same, on this server or another one.

Files that are there already and hold something else are named, and nothing is written, unless --force replaces them.`,
		Example: `  keyfire workflows pull invoice-sync deployed && diff -r deployed workflows/invoice-sync`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			w, err := s.Workflow(cmd.Context(), args[0])
			if err != nil {
				return unreachable(err)
			}
			files, name, err := pulled(cmd.Context(), s, w)
			if err != nil {
				return err
			}
			if err := save(args[1], files, force); err != nil {
				return err
			}
			if name != w.Name {
				a.note("the file says name: %s, and the workflow is called %s by now; change that before you apply it", name, w.Name)
			}
			names := slices.Sorted(maps.Keys(files))
			if a.json {
				return a.printJSON(map[string]any{"object": "files", "workflow": w.Name, "version": w.Version, "directory": args[1], "files": names})
			}
			for _, file := range names {
				fmt.Fprintln(a.Stdout, path.Join(args[1], file))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace files that hold something else")
	return cmd
}

// pulled returns what was published as a version, by path, and what the file calls the workflow.
func pulled(ctx context.Context, s *remote, w *client.Workflow) (files map[string][]byte, name string, err error) {
	filename := "workflow.yaml"
	if json.Valid([]byte(w.Source)) {
		filename = "workflow.json"
	}
	var def core.Definition
	if err := json.Unmarshal(w.Definition, &def); err != nil {
		return nil, "", fmt.Errorf("this version of keyfire cannot read what was published as %s@%d; use the server's: %w", w.Name, w.Version, err)
	}
	up := 0 // levels that modules are above the file, which must then lie as deep for all to be in the directory
	for _, n := range def.Nodes {
		up = max(up, strings.Count(n.Uses, "../"))
	}
	below := strings.Repeat("workflow/", up)
	files = map[string][]byte{below + filename: []byte(w.Source)}
	for _, n := range def.Nodes {
		at := path.Join(below, n.Uses)
		if core.ValidDigest(n.Uses) || files[at] != nil {
			continue
		}
		if files[at], err = s.Module(ctx, n.Module); err != nil {
			return nil, "", unreachable(err)
		}
	}
	return files, def.Name, nil
}

// save writes files into a directory, and nowhere else, whatever links there are in it.
func save(dir string, files map[string][]byte, force bool) (err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	var other []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		switch there, err := root.ReadFile(name); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case !bytes.Equal(there, files[name]):
			other = append(other, path.Join(dir, name))
		}
	}
	if len(other) > 0 && !force {
		return fmt.Errorf("nothing was written, since these files hold something else than what was published: %s; name another directory, or replace them with --force",
			strings.Join(other, ", "))
	}
	for name, content := range files {
		if err := root.MkdirAll(path.Dir(name), 0o750); err != nil {
			return err
		}
		if err := root.WriteFile(name, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
