package admin

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"perdure/control/ident"
)

// Inspector looks at invocations without changing anything.
type Inspector interface {
	// Invocation is what is known of an invocation, with its journal and events; nil if it does not exist.
	Invocation(ctx context.Context, id ident.InvocationID) (*InvocationInfo, error)
	// Invocations lists those that fit, without journals and events, the newest first.
	Invocations(ctx context.Context, q InvocationQuery) ([]InvocationInfo, error)
}

// InvocationQuery chooses invocations. Empty fields do not restrict.
type InvocationQuery struct {
	Status                []string // any of these
	Service, Handler, Key string
	Deployment            ident.DeploymentID // pinned to it
	Limit                 int                // at most so many, at least 1
}

// Names of statuses, as introspection shows them.
const (
	StatusScheduled  = "scheduled"   // waits for its time
	StatusPending    = "pending"     // waits for the key of its object
	StatusReady      = "ready"       // waits for a slot to run
	StatusRunning    = "running"     // an attempt is open
	StatusBackingOff = "backing-off" // waits for its next attempt
	StatusSuspended  = "suspended"
	StatusPaused     = "paused"
	StatusCompleted  = "completed"
)

var statuses = map[string]bool{
	StatusScheduled: true, StatusPending: true, StatusReady: true, StatusRunning: true,
	StatusBackingOff: true, StatusSuspended: true, StatusPaused: true, StatusCompleted: true,
}

// InvocationInfo is what operators see of an invocation. Times are RFC 3339; empty ones have not come.
type InvocationInfo struct {
	ID     string `json:"id"`
	Target string `json:"target"` // service/handler or service/key/handler
	Status string `json:"status"`

	IdempotencyKey *string `json:"idempotency_key,omitempty"`
	InvokedBy      string  `json:"invoked_by"` // ingress, service, subscription or restart_as_new
	InvokedByID    string  `json:"invoked_by_id,omitempty"`
	InvokedByName  string  `json:"invoked_by_target,omitempty"`

	CreatedAt    string `json:"created_at"`
	ModifiedAt   string `json:"modified_at"`
	ScheduledFor string `json:"scheduled_for,omitempty"`
	CompletedAt  string `json:"completed_at,omitempty"`

	// Deployment and Protocol are what the invocation is pinned to, absent before its first progress.
	Deployment string `json:"deployment,omitempty"`
	Protocol   uint32 `json:"protocol_version,omitempty"`

	// Of the attempts since the invocation began to run, as the invoker of its partition knows them.
	Attempts       uint64 `json:"attempts,omitempty"` // started, the current one included
	LastAttemptAt  string `json:"last_attempt_at,omitempty"`
	NextAttemptAt  string `json:"next_attempt_at,omitempty"`
	LastDeployment string `json:"last_attempt_deployment,omitempty"`
	LastServer     string `json:"last_attempt_server,omitempty"`
	// LastFailure is that of the last failed attempt; a later attempt may have got further.
	LastFailure *FailureInfo `json:"last_failure,omitempty"`

	WaitingFor *FutureInfo    `json:"waiting_for,omitempty"`
	Result     *ResultInfo    `json:"result,omitempty"` // of a completed invocation
	JournalLen uint32         `json:"journal_size"`
	Journal    []EntryInfo    `json:"journal,omitempty"`
	Events     []EventInfo    `json:"events,omitempty"`
	Retention  *RetentionInfo `json:"retention,omitempty"`
}

// FailureInfo is why an attempt failed.
type FailureInfo struct {
	Code       uint32       `json:"code"`                 // like an HTTP status
	ErrorCode  string       `json:"error_code,omitempty"` // RT0007
	Message    string       `json:"message"`
	Stacktrace string       `json:"stacktrace,omitempty"`
	Command    *CommandInfo `json:"related_command,omitempty"`
}

// CommandInfo is the command that a failure is about. Its index may be one past the journal.
type CommandInfo struct {
	Index uint32 `json:"index"`
	Type  string `json:"type,omitempty"`
	Name  string `json:"name,omitempty"`
}

// FutureInfo is what an invocation waits for: completions and signals of it, combined.
type FutureInfo struct {
	Combinator   string       `json:"combinator"`
	Completions  []uint32     `json:"completions,omitempty"`
	Signals      []uint32     `json:"signals,omitempty"`
	NamedSignals []string     `json:"named_signals,omitempty"`
	Nested       []FutureInfo `json:"nested,omitempty"`
}

// ResultInfo is how an invocation ended. The value of a success is for its callers only.
type ResultInfo struct {
	Result  string `json:"result"` // success or failure
	Code    uint32 `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// EntryInfo is an entry of a journal.
type EntryInfo struct {
	Index      uint32 `json:"index"`
	Type       string `json:"type"` // Command: Run, Notification: Sleep
	Name       string `json:"name,omitempty"`
	AppendedAt string `json:"appended_at"`
	Size       int    `json:"size"` // in bytes
}

// EventInfo is something that happened to an invocation beside its journal.
type EventInfo struct {
	Type       string       `json:"type"` // TransientError, Paused or Suspended
	At         string       `json:"at"`
	AfterEntry uint32       `json:"after_entry"`
	Failure    *FailureInfo `json:"failure,omitempty"`
	WaitingFor *FutureInfo  `json:"waiting_for,omitempty"`
}

// RetentionInfo is how long the invocation is kept after its end, as durations.
type RetentionInfo struct {
	Completion string `json:"completion"`
	Journal    string `json:"journal"`
}

// Bounds of a list of invocations.
const (
	defaultListed = 50
	maxListed     = 1000
)

// getInvocation is the handler of GET /perdure/invocations/{id}.
func (c *call) getInvocation() error {
	id, err := c.invocationID()
	if err != nil {
		return err
	}
	ctx, cancel := c.ctx()
	defer cancel()
	info, err := c.a.deps.Inspector.Invocation(ctx, id)
	switch {
	case err != nil:
		return routingError(err)
	case info == nil:
		status, text := outcomeText("get", NotFound)
		return &apiError{status: status, message: strings.Replace(text, "%s", id.String(), 1)}
	}
	c.a.respond(c.w, c.r, http.StatusOK, info)
	return nil
}

// listInvocations is the handler of GET /perdure/invocations.
func (c *call) listInvocations() error {
	q, err := c.invocationQuery()
	if err != nil {
		return err
	}
	ctx, cancel := c.ctx()
	defer cancel()
	list, err := c.a.deps.Inspector.Invocations(ctx, q)
	if err != nil {
		return routingError(err)
	}
	if list == nil {
		list = []InvocationInfo{}
	}
	c.a.respond(c.w, c.r, http.StatusOK, struct {
		Invocations []InvocationInfo `json:"invocations"`
	}{list})
	return nil
}

func (c *call) invocationQuery() (InvocationQuery, error) {
	v := c.r.URL.Query()
	q := InvocationQuery{Service: v.Get("service"), Handler: v.Get("handler"), Key: v.Get("key"), Limit: defaultListed}
	for _, s := range v["status"] {
		for name := range strings.SplitSeq(s, ",") {
			if !statuses[name] {
				return q, badRequest("There is no status '" + name + "': use " + strings.Join(statusNames(), ", ") + ".")
			}
			q.Status = append(q.Status, name)
		}
	}
	if s := v.Get("deployment"); s != "" {
		id, err := ident.ParseDeploymentID(s)
		if err != nil {
			return q, badQuery("deployment", err)
		}
		q.Deployment = id
	}
	if s := v.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxListed {
			return q, badRequest("The query parameter 'limit' must be a number from 1 to " + strconv.Itoa(maxListed) + ".")
		}
		q.Limit = n
	}
	return q, nil
}

func statusNames() []string {
	return []string{StatusScheduled, StatusPending, StatusReady, StatusRunning, StatusBackingOff, StatusSuspended, StatusPaused, StatusCompleted}
}
