// Package github has the part of GitHub's push event that the nodes of github-push read. GitHub sends much more, and adds to it
// without notice, so the event is decoded leniently: what is not named here is ignored.
package github

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Push is a push event: a branch or a tag was moved, created or deleted.
type Push struct {
	Ref        string     `json:"ref"` // refs/heads/main, refs/tags/v1.0.0
	Before     string     `json:"before"`
	After      string     `json:"after"`
	Created    bool       `json:"created"`
	Deleted    bool       `json:"deleted"`
	Forced     bool       `json:"forced"`
	Compare    string     `json:"compare"` // page that shows what changed
	Commits    []Commit   `json:"commits"` // the new ones, oldest first
	Repository Repository `json:"repository"`
	Sender     Sender     `json:"sender"`
}

// Commit is one commit of a push.
type Commit struct {
	ID      string `json:"id"`
	Message string `json:"message"`
	URL     string `json:"url"`
	Author  struct {
		Name string `json:"name"`
	} `json:"author"`
}

// Repository is where the push went.
type Repository struct {
	FullName string `json:"full_name"` // owner/name
	HTMLURL  string `json:"html_url"`
}

// Sender is the account that pushed.
type Sender struct {
	Login   string `json:"login"`
	HTMLURL string `json:"html_url"`
}

// ParsePush decodes a push event. It fails for JSON that lacks what every push has, such as the event of another type.
func ParsePush(event json.RawMessage) (Push, error) {
	var p Push
	if err := json.Unmarshal(event, &p); err != nil {
		return Push{}, fmt.Errorf("push event: %w", err)
	}
	if p.Ref == "" || p.Repository.FullName == "" || p.Sender.Login == "" {
		return Push{}, errors.New("push event: ref, repository.full_name and sender.login are needed; is this another kind of event?")
	}
	ids := []string{p.Before, p.After}
	for _, c := range p.Commits {
		ids = append(ids, c.ID)
	}
	for _, id := range ids {
		if !commitID.MatchString(id) {
			return Push{}, errors.New("push event: before, after and the id of each commit must be whole commit ids in lower-case hexadecimal")
		}
	}
	return p, nil
}

// commitID matches SHA-1 and SHA-256 ids. The id of a ref that does not exist is all zeros.
var commitID = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// Branch returns the name of the branch that was pushed, if it was one.
func (p Push) Branch() (string, bool) { return strings.CutPrefix(p.Ref, "refs/heads/") }

// Tag returns the name of the tag that was pushed, if it was one.
func (p Push) Tag() (string, bool) { return strings.CutPrefix(p.Ref, "refs/tags/") }

// Kind is what a push did to its ref.
type Kind string

// The kinds of pushes.
const (
	BranchPushed  Kind = "branch_pushed"  // new commits on a branch
	BranchForced  Kind = "branch_forced"  // history of a branch replaced
	BranchCreated Kind = "branch_created" // with or without new commits
	BranchDeleted Kind = "branch_deleted"
	TagCreated    Kind = "tag_created"
	TagMoved      Kind = "tag_moved"
	TagDeleted    Kind = "tag_deleted"
	OtherRef      Kind = "other" // neither a branch nor a tag, such as refs/notes/commits
)

// Kind says what the push did.
func (p Push) Kind() Kind {
	if _, ok := p.Branch(); ok {
		return choose(p, BranchCreated, BranchDeleted, BranchForced, BranchPushed)
	}
	if _, ok := p.Tag(); ok {
		return choose(p, TagCreated, TagDeleted, TagMoved, TagMoved)
	}
	return OtherRef
}

func choose(p Push, created, deleted, forced, moved Kind) Kind {
	switch {
	case p.Deleted:
		return deleted
	case p.Created:
		return created
	case p.Forced:
		return forced
	}
	return moved
}
