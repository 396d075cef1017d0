package schema

import (
	"encoding/json"
	"strconv"
	"time"

	"perdure/control/ident"
)

// ServiceType says how the invocations of a service relate to each other. The numbers stand in the log.
type ServiceType uint32

// Service types.
const (
	Service       ServiceType = 1 // handlers run independently of each other
	VirtualObject ServiceType = 2 // state per key; exclusive handlers run one after the other
	Workflow      ServiceType = 3 // the run handler executes once per key
)

// Keyed reports whether targets of the service have a key.
func (t ServiceType) Keyed() bool { return t == VirtualObject || t == Workflow }

// String is the name that the admin API uses.
func (t ServiceType) String() string {
	switch t {
	case Service:
		return "Service"
	case VirtualObject:
		return "VirtualObject"
	case Workflow:
		return "Workflow"
	}
	return "ServiceType(" + strconv.FormatUint(uint64(t), 10) + ")"
}

// HandlerType says how an invocation of the handler relates to others with the same key. The numbers
// stand in the log.
type HandlerType uint32

// Handler types.
const (
	Shared      HandlerType = 1 // concurrent; also every handler of a plain service
	Exclusive   HandlerType = 2 // one at a time per object key
	WorkflowRun HandlerType = 3 // once per workflow key
)

// String is the name that the admin API uses.
func (t HandlerType) String() string {
	switch t {
	case Shared:
		return "Shared"
	case Exclusive:
		return "Exclusive"
	case WorkflowRun:
		return "Workflow"
	}
	return "HandlerType(" + strconv.FormatUint(uint64(t), 10) + ")"
}

// ProtocolType says whether a deployment can read and write at the same time.
type ProtocolType string

// Protocol types.
const (
	BidiStream      ProtocolType = "BidiStream"
	RequestResponse ProtocolType = "RequestResponse"
)

// HTTPVersion is the version that a deployment answered its discovery with; invocations use the same.
type HTTPVersion string

// HTTP versions.
const (
	HTTP11 HTTPVersion = "HTTP/1.1"
	HTTP2  HTTPVersion = "HTTP/2.0"
)

// HTTPAddress is a deployment that is reached by URL.
type HTTPAddress struct {
	// URI is normalised: lower-case scheme (http or https) and host, no default port, no user info, no fragment, a path
	// that is at least "/". A query is kept.
	URI string `json:"uri"`
	// UseHTTP11 is the caller's wish not to try HTTP/2.
	UseHTTP11 bool `json:"use_http_11,omitempty"`
	// Version is what discovery negotiated.
	Version HTTPVersion `json:"version"`
}

// LambdaAddress is a deployment that is an AWS Lambda function.
type LambdaAddress struct {
	// ARN is qualified: arn:<partition>:lambda:<region>:<account>:function:<name>:<version or alias>.
	ARN string `json:"arn"`
	// AssumeRoleARN is the role to assume before invoking; empty means the server's own.
	AssumeRoleARN string `json:"assume_role_arn,omitempty"`
	// Compression is "zstd" when the function understands compressed bodies, otherwise empty.
	Compression string `json:"compression,omitempty"`
}

// Address is where a deployment is; exactly one field is set.
type Address struct {
	HTTP   *HTTPAddress   `json:"http,omitempty"`
	Lambda *LambdaAddress `json:"lambda,omitempty"`
}

// String is the URI or the ARN.
func (a Address) String() string {
	switch {
	case a.HTTP != nil:
		return a.HTTP.URI
	case a.Lambda != nil:
		return a.Lambda.ARN
	}
	return ""
}

// Deployment is one immutable version of user code at one address, with the services that it announced. It is also the
// stored form. Readers must not change it: it is shared by all snapshots.
type Deployment struct {
	ID           ident.DeploymentID `json:"-"`
	Address      Address            `json:"address"`
	ProtocolType ProtocolType       `json:"protocol_type"`
	// Headers go with every request to the deployment. They may be secrets: never log the values.
	Headers  map[string]string `json:"headers,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	// CreatedMs is the time of registration, or of the last overwriting, in ms since the epoch.
	CreatedMs uint64 `json:"created_ms"`
	// MinProtocol and MaxProtocol are the service protocol versions that the deployment announced, inclusive.
	MinProtocol uint32 `json:"min_protocol"`
	MaxProtocol uint32 `json:"max_protocol"`
	// SDKVersion is what it said about itself, e.g. restate-sdk-go/v1.2.0; may be empty.
	SDKVersion string `json:"sdk_version,omitempty"`
	// Services in the order of their names.
	Services []ServiceRevision `json:"services,omitempty"`
}

// ServiceRevision is a service as one deployment implements it.
type ServiceRevision struct {
	Name string      `json:"name"`
	Type ServiceType `json:"type"`
	// Revision counts the registrations of the service, from 1. The highest is the latest.
	Revision      uint32            `json:"revision"`
	Documentation *string           `json:"documentation,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty"`
	// Overrides are what the service asks for instead of the server's defaults, and what an operator changed.
	Overrides Overrides `json:"overrides"`
	// Handlers in the order of their names.
	Handlers []Handler `json:"handlers,omitempty"`

	// Deployment implements this revision. Set by New.
	Deployment ident.DeploymentID `json:"-"`
	// Options are those of a handler without overrides of its own. Set by New.
	Options Options `json:"-"`
	// Notes are about Overrides of the service, and the defaults in their place. Set by New.
	Notes []Note `json:"-"`
}

// Handler is one handler of a service revision.
type Handler struct {
	Name          string            `json:"name"`
	Type          HandlerType       `json:"type"`
	Documentation *string           `json:"documentation,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty"`
	Overrides     Overrides         `json:"overrides"`
	Input         InputRule         `json:"input"`
	Output        OutputRule        `json:"output"`

	// Service, ServiceType, Deployment and Revision are those of the service revision. Set by New.
	Service     string             `json:"-"`
	ServiceType ServiceType        `json:"-"`
	Deployment  ident.DeploymentID `json:"-"`
	Revision    uint32             `json:"-"`
	// Options are the effective ones: handler's, else service's, else the server's, within the server's limits. Set by New.
	Options Options `json:"-"`
	// Applied are the Overrides as far as they have an effect, and Notes say where they have not. Set by New.
	Applied Overrides `json:"-"`
	Notes   []Note    `json:"-"`
}

// Note tells whoever registered a service that an override is not taken as it is. Code is a published one, and the text that
// users know.
type Note struct{ Code, Message string }

// Overrides are options that a service or a handler may set; nil means not set.
type Overrides struct {
	// Public is false when the ingress must refuse calls.
	Public *bool `json:"public,omitempty"`
	// InactivityTimeout is how long an attempt may be silent before it is asked to suspend.
	InactivityTimeout *time.Duration `json:"inactivity_timeout,omitempty"`
	// AbortTimeout is how long after that the attempt is broken off.
	AbortTimeout *time.Duration `json:"abort_timeout,omitempty"`
	// JournalRetention is how long the journal of a completed invocation is kept.
	JournalRetention *time.Duration `json:"journal_retention,omitempty"`
	// IdempotencyRetention is how long the result of an invocation with an idempotency key is kept.
	IdempotencyRetention *time.Duration `json:"idempotency_retention,omitempty"`
	// WorkflowRetention is how long result, state and promises of a completed workflow are kept.
	WorkflowRetention *time.Duration `json:"workflow_completion_retention,omitempty"`
	// LazyState asks for an empty state map at the start of an attempt.
	LazyState *bool          `json:"lazy_state,omitempty"`
	Retry     RetryOverrides `json:"retry"`
}

// RetryOverrides are the parts of a retry policy that a service or handler may set; nil means not set.
type RetryOverrides struct {
	InitialInterval *time.Duration  `json:"initial_interval,omitempty"`
	Factor          *float64        `json:"factor,omitempty"`
	MaxInterval     *time.Duration  `json:"max_interval,omitempty"`
	MaxAttempts     *uint64         `json:"max_attempts,omitempty"`
	OnMaxAttempts   *ExhaustedRetry `json:"on_max_attempts,omitempty"`
}

// ExhaustedRetry is what happens to an invocation whose attempts are used up.
type ExhaustedRetry string

// What happens when the attempts are used up.
const (
	Pause ExhaustedRetry = "Pause"
	Kill  ExhaustedRetry = "Kill"
)

// RetryPolicy is the effective policy for transient failures of attempts.
type RetryPolicy struct {
	InitialInterval time.Duration
	Factor          float64       // at least 1
	MaxInterval     time.Duration // 0 = unbounded
	MaxAttempts     uint64        // including the first one; 0 = unbounded
	OnMaxAttempts   ExhaustedRetry
}

// Options are the effective options of a handler.
type Options struct {
	Public            bool
	InactivityTimeout time.Duration // 0 = request/response: do not wait for results while the attempt is open
	AbortTimeout      time.Duration
	JournalRetention  time.Duration
	// IdempotencyRetention applies to invocations with an idempotency key.
	IdempotencyRetention time.Duration
	// WorkflowRetention applies to the run handler of workflows.
	WorkflowRetention time.Duration
	LazyState         bool
	Retry             RetryPolicy
}

// InputRule says what bodies a handler accepts.
type InputRule struct {
	// Any accepts everything: the manifest said nothing about the input.
	Any      bool `json:"any,omitempty"`
	Required bool `json:"required,omitempty"`
	// ContentType is a pattern (type/subtype, type/* or */*); empty with Any unset means that body and content type must be
	// absent, or with Required that nothing is acceptable.
	ContentType string          `json:"content_type,omitempty"`
	JSONSchema  json.RawMessage `json:"json_schema,omitempty"`
}

// OutputRule says how a handler's output is labelled.
type OutputRule struct {
	// ContentType of the response; empty means none.
	ContentType string `json:"content_type,omitempty"`
	// SetIfEmpty sends the content type also with an empty body.
	SetIfEmpty bool            `json:"set_if_empty,omitempty"`
	JSONSchema json.RawMessage `json:"json_schema,omitempty"`
}

// ContentTypeFor is the content type of an output: empty means that no header is sent.
func (r *OutputRule) ContentTypeFor(empty bool) string {
	if empty && !r.SetIfEmpty {
		return ""
	}
	return r.ContentType
}

// Retention says how long the row of a completed invocation, and its journal, are kept. Both 0 means not at all.
type Retention struct{ Completion, Journal time.Duration }

// Retention of an invocation of h; withKey says that it has an idempotency key. An invocation that others can find by
// name (workflow run, idempotency key) keeps its result for the retention of that kind and its journal not longer than
// the result; any other keeps both for the journal retention.
func (h *Handler) Retention(withKey bool) Retention {
	o := &h.Options
	switch {
	case h.Type == WorkflowRun:
		return Retention{o.WorkflowRetention, min(o.JournalRetention, o.WorkflowRetention)}
	case withKey:
		return Retention{o.IdempotencyRetention, min(o.JournalRetention, o.IdempotencyRetention)}
	}
	return Retention{o.JournalRetention, o.JournalRetention}
}
