package telemetry

// Names of span attributes. Packages below this one cannot import it and write the same text; a test fails when the source tree
// writes a "keyfire." attribute that has no constant here, so the list is the whole vocabulary.
const (
	AttrAccount         = "keyfire.account"
	AttrAuthBackend     = "keyfire.auth.backend" // authenticator that was asked
	AttrAuthPlace       = "keyfire.auth.place"   // where in the request the credential was found, never the credential
	AttrErrorCode       = "keyfire.error.code"   // a core.Code
	AttrKeyID           = "keyfire.key.id"
	AttrNodeAttempt     = "keyfire.node.attempt" // from 1
	AttrNodeClass       = "keyfire.node.error_class"
	AttrNodeID          = "keyfire.node.id"
	AttrNodeModule      = "keyfire.node.module" // digest
	AttrNodePeakMemory  = "keyfire.node.peak_memory_bytes"
	AttrPrincipal       = "keyfire.principal" // namespaced subject
	AttrRequestID       = "keyfire.request.id"
	AttrRoute           = "keyfire.trigger.route" // "native" or the adapter's name
	AttrRunID           = "keyfire.run.id"
	AttrRunReplayed     = "keyfire.run.replayed" // an Idempotency-Key found an earlier run
	AttrRunStatus       = "keyfire.run.status"
	AttrWorkflowDigest  = "keyfire.workflow.digest"
	AttrWorkflowID      = "keyfire.workflow.id"
	AttrWorkflowSlug    = "keyfire.workflow.slug"
	AttrWorkflowVersion = "keyfire.workflow.version"
)

// Names that a log line carries when it was written within a trace.
const (
	LogTraceID = "trace_id"
	LogSpanID  = "span_id"
)
