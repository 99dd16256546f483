package core

// Prefixes of the ids Keyfire gives out. An id is its prefix followed by a ULID in lower case, so ids of one kind sort by the time they were made.
const (
	PrefixAccount  = "acct_"
	PrefixWorkflow = "wf_"
	PrefixRun      = "run_"
	PrefixKey      = "key_"
	PrefixEvent    = "evt_"
	PrefixRequest  = "req_"
	PrefixServer   = "srv_" // one start of one server
	PrefixUser     = "usr_"
	PrefixSession  = "ses_"
	PrefixCallback = "cb_"
)

// DefaultAccount owns everything on a server where no other account was created.
const DefaultAccount = "acct_default"

// NewID makes a fresh id with the given prefix. Implementations are safe for concurrent use and never repeat an id.
type NewID func(prefix string) string
