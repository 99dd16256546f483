package telemetry

// Names of span attributes. Packages below this one cannot import it and write the same text; a test fails when the source tree
// writes a "keyfire." name that has no constant here, or when nothing writes one that has, so these lists are the vocabulary.
const (
	AttrAuthBackend     = "keyfire.auth.backend" // authenticator that was asked
	AttrAuthPlace       = "keyfire.auth.place"   // where in the request the credential was found, never the credential
	AttrErrorCode       = "keyfire.error.code"   // of the problem a request was answered with
	AttrNodeAttempt     = "keyfire.node.attempt" // from 1
	AttrNodeClass       = "keyfire.node.error_class"
	AttrNodeID          = "keyfire.node.id"
	AttrNodeModule      = "keyfire.node.module" // digest
	AttrNodePeakMemory  = "keyfire.node.peak_memory_bytes"
	AttrNodeStart       = "keyfire.node.start" // of the metric of calls alone: shared, reseeded, hooked, ahead or plain
	AttrPluginName      = "keyfire.plugin.name"
	AttrPluginState     = "keyfire.plugin.state" // of the metric of states alone
	AttrPluginVerdict   = "keyfire.plugin.verdict"
	AttrPluginVersion   = "keyfire.plugin.version"
	AttrPrincipal       = "keyfire.principal" // namespaced subject
	AttrRequestID       = "keyfire.request.id"
	AttrRunAttempt      = "keyfire.run.attempt"
	AttrRunID           = "keyfire.run.id"
	AttrReplayed        = "keyfire.replayed" // an Idempotency-Key found an earlier run
	AttrRunStatus       = "keyfire.run.status"
	AttrWorkflowID      = "keyfire.workflow.id"
	AttrWorkflowSlug    = "keyfire.workflow.slug"
	AttrWorkflowVersion = "keyfire.workflow.version"
)

// Names of metrics. Their attributes are closed sets, such as the plugins of the configuration: never an id.
const (
	MetricRequests       = "http.server.request.duration" // by method, route and status, as OpenTelemetry has it
	MetricCredentials    = "keyfire.auth.credentials"     // by "auth.credential_location", the place in the request
	MetricRuns           = "keyfire.run.duration"         // by AttrRunStatus
	MetricQueued         = "keyfire.queue.waiting"
	MetricLost           = "keyfire.telemetry.lost" // by "signal" and "reason"
	MetricMemoryUsed     = "keyfire.memory.used"    // of the budget of all nodes together
	MetricMemoryWaiting  = "keyfire.memory.waiting" // calls of nodes that wait for some
	MetricModules        = "keyfire.module.loaded"
	MetricModuleMemory   = "keyfire.module.memory"
	MetricCalls          = "keyfire.instance.calls" // by AttrNodeStart
	MetricIdle           = "keyfire.instance.idle"
	MetricIdleMemory     = "keyfire.instance.idle_memory"
	MetricMade           = "keyfire.instance.made"
	MetricResets         = "keyfire.instance.resets"
	MetricVerified       = "keyfire.instance.verified"   // resets that were compared byte by byte
	MetricMismatches     = "keyfire.instance.mismatches" // and found to have left a difference
	MetricPluginCalls    = "keyfire.plugin.calls"
	MetricPluginDuration = "keyfire.plugin.call.duration"
	MetricPluginRestarts = "keyfire.plugin.restarts"
	MetricPluginStatus   = "keyfire.plugin.status"
	MetricPluginDegraded = "keyfire.plugin.degraded"
)

// Names that a log line carries when it was written within a trace.
const (
	LogTraceID = "trace_id"
	LogSpanID  = "span_id"
)
