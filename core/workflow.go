package core

import (
	"encoding/json"
	"regexp"
	"time"
)

// Limits of a workflow file. They are part of the file format.
const (
	MaxWorkflowFile  = 256 << 10 // bytes
	MaxNodes         = 200
	MaxModule        = 16 << 20 // bytes of one WASM module
	MaxRunTimeout    = 300 * time.Second
	DefaultRunLimit  = 30 * time.Second // trigger.timeout
	DefaultNodeLimit = 10 * time.Second // limits.timeout of a node
)

// Workflow is a named, versioned graph. ID never changes; Slug may.
type Workflow struct {
	ID        string
	Account   string
	Slug      string
	Title     string
	Aliases   []string // further names that clients of other products still send
	Enabled   bool     // false: triggers are refused; set by the file and by the enable and disable commands
	Version   int      // newest published version, from 1
	Digest    string   // of that version
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Version is one immutable published state of a workflow.
type Version struct {
	Workflow   string // workflow id
	Version    int    // from 1, without gaps
	Digest     string // "sha256:<hex>" over the canonical definition, module digests included
	Definition Definition
	Source     string // the file as it was published
	CreatedAt  time.Time
	CreatedBy  string // actor, as in the audit event
}

// Definition is what a workflow file says, decoded, checked and with every module named by digest. Its JSON form is what a
// version stores and what its digest covers, so fields are only added, with omitempty.
type Definition struct {
	Keyfire string          `json:"keyfire"` // format, "v1"
	Name    string          `json:"name"`    // slug
	Title   string          `json:"title,omitempty"`
	Aliases []string        `json:"aliases,omitempty"`
	Trigger TriggerSpec     `json:"trigger"`
	Input   json.RawMessage `json:"input,omitempty"`  // JSON Schema 2020-12; absent accepts anything
	Engine  string          `json:"engine,omitempty"` // EnginePlain or EngineSnapshot, for nodes that do not say; "" leaves it to the server
	Nodes   []Node          `json:"nodes"`
	Output  json.RawMessage `json:"output,omitempty"` // template; absent is the output of the last node(s)
}

// TriggerSpec says who may start a run and under which terms.
type TriggerSpec struct {
	Enabled        bool     `json:"enabled"`                   // default false: nothing is reachable until its author says so
	Public         bool     `json:"public,omitempty"`          // callable without a credential
	GlobalKeys     bool     `json:"global_keys"`               // default true; false: only keys scoped to this workflow
	Timeout        Duration `json:"timeout"`                   // of the whole run
	AllowedOrigins []string `json:"allowed_origins,omitempty"` // CORS
	Overrides      []string `json:"overrides,omitempty"`       // "node.field" that callers may override

	Mode        string       `json:"mode,omitempty"` // ModeAsync, or "" for inline runs that are waited for
	Concurrency *Concurrency `json:"concurrency,omitempty"`
	Schedule    []Schedule   `json:"schedule,omitempty"`

	// Webhook lets senders who sign their requests start runs on the workflow's webhook route.
	Webhook *WebhookSpec `json:"webhook,omitempty"`
}

// WebhookSpec says how webhooks of a workflow are signed.
type WebhookSpec struct {
	Verify string `json:"verify"` // VerifyStandardWebhooks
	Secret string `json:"secret"` // name of the account's secret that holds the signing secret
}

// VerifyStandardWebhooks is the scheme of https://www.standardwebhooks.com.
const VerifyStandardWebhooks = "standard-webhooks"

// ModeAsync is the trigger mode in which a run is durable and its caller does not wait unless it asks to.
const ModeAsync = "async"

// Schedule starts runs at the times of a cron expression.
type Schedule struct {
	Cron     string          `json:"cron"`               // five fields, or a word such as @daily
	Timezone string          `json:"timezone,omitempty"` // of the tz database; "" is UTC
	Input    json.RawMessage `json:"input,omitempty"`
	Missed   string          `json:"missed,omitempty"` // MissedSkip, or "" to run the latest of the times missed while no server ran
}

// MissedSkip is the policy for missed times of a schedule that makes up for none.
const MissedSkip = "skip"

// Node is one step of the graph.
type Node struct {
	ID     string                     `json:"id"`
	Module string                     `json:"module"`         // "sha256:<hex>"
	Uses   string                     `json:"uses"`           // as written in the file
	Call   string                     `json:"call,omitempty"` // function of an Extism plugin to call
	Needs  []string                   `json:"needs"`          // explicit and implied, in file order
	If     string                     `json:"if,omitempty"`   // template holding one expression
	With   json.RawMessage            `json:"with,omitempty"` // template; absent is an empty object
	Config map[string]json.RawMessage `json:"config,omitempty"`
	Grants Grants                     `json:"grants,omitzero"`
	Limits Limits                     `json:"limits"`
	Retry  *Retry                     `json:"retry,omitempty"`
	Engine string                     `json:"engine,omitempty"` // as the definition's, for this node
	Record string                     `json:"record,omitempty"` // RecordFailures, RecordAll, or "" to keep no tapes

	// AtMostOnce promises that the node is never attempted again once an attempt has begun. It excludes Retry.
	AtMostOnce bool `json:"at_most_once,omitempty"`
}

// What an engine may be. Both give every invocation a fresh sandbox.
const (
	EngineSnapshot = "snapshot" // from the frozen state of the started module
	EnginePlain    = "plain"    // by starting the module
)

// Of which attempts of a node a tape may be kept, so that they can be replayed.
const (
	RecordFailures = "failures" // those that do not succeed
	RecordAll      = "all"
)

// EngineOf returns the engine that the definition asks for, for one of its nodes; "" if it does not say.
func (d *Definition) EngineOf(n *Node) string {
	if n.Engine != "" {
		return n.Engine
	}
	return d.Engine
}

// Grants are the capabilities a workflow gives to a node. The zero value is none: a node computes, logs, and reads its input and config.
type Grants struct {
	// HTTP lists which requests the node may send, such as "GET https://api.example.com".
	HTTP []string `json:"http,omitempty"`
	// Secrets lists which secrets of the account the node may read, by name.
	Secrets []string `json:"secrets,omitempty"`
	// KV says whether the node may read the values that the workflow's nodes keep between runs (KVRead), or write them too (KVWrite).
	KV string `json:"kv,omitempty"`
}

// What Grants.KV may be, beside empty.
const (
	KVRead  = "read"
	KVWrite = "write"
)

// Limits bound one invocation of a node. Zero is the default of the server.
type Limits struct {
	Timeout Duration `json:"timeout,omitempty"`
	Memory  int64    `json:"memory,omitempty"` // bytes of linear memory
	Output  int64    `json:"output,omitempty"` // bytes of output
	// HostCalls is how many host functions the node may call; those of WASI are not counted.
	HostCalls int64 `json:"host_calls,omitempty"`
}

// Retry says when a failed attempt of a node is followed by another one.
type Retry struct {
	MaxAttempts int          `json:"max_attempts"` // including the first, 1..20
	Initial     Duration     `json:"initial"`      // wait before the second attempt
	Max         Duration     `json:"max"`          // longest wait
	Backoff     string       `json:"backoff"`      // "constant" or "exponential"
	Jitter      bool         `json:"jitter"`       // spread each wait over [wait/2, wait]
	On          []ErrorClass `json:"on"`           // which failures are retried
}

// Node returns the node with the given id.
func (d *Definition) Node(id string) (*Node, bool) {
	for i := range d.Nodes {
		if d.Nodes[i].ID == id {
			return &d.Nodes[i], true
		}
	}
	return nil, false
}

// Module is a WASM binary as an account holds it, named by its digest.
type Module struct {
	Account   string
	Digest    string // "sha256:<hex>"
	Size      int64
	CreatedAt time.Time
}

var (
	slugPattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?(/[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?){0,3}$`)
	nodePattern   = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)
	digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// ValidSlug reports whether s may name a workflow: up to four parts of lower-case letters, digits and inner hyphens, at most
// 64 characters each, separated by "/".
func ValidSlug(s string) bool { return slugPattern.MatchString(s) }

// ValidNodeID reports whether s may name a node. A hyphen is allowed in the id; expressions reach such a node as nodes["a-b"].
func ValidNodeID(s string) bool { return nodePattern.MatchString(s) }

// ValidDigest reports whether s is a module or version digest.
func ValidDigest(s string) bool { return digestPattern.MatchString(s) }
