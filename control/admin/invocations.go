package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"perdure/control/ident"
	"perdure/control/schema"
)

// operation is something that is done to an invocation. A restart gives the id of the new one.
type operation func(ctx context.Context, id ident.InvocationID) (Outcome, ident.InvocationID, error)

// verb is an operation with the parameters of a request still open.
type verb struct {
	name string
	// prepare reads the parameters: query for a single invocation, the deployment of the body for a batch.
	prepare func(a *Admin, p params) (operation, error)
}

// params of an operation.
type params struct {
	from       uint32
	deployment string
	// bad makes the error of a deployment that cannot be parsed.
	bad func(error) error
}

func simple(f func(Invocations) func(context.Context, ident.InvocationID) (Outcome, error)) func(*Admin, params) (operation, error) {
	return func(a *Admin, _ params) (operation, error) {
		do := f(a.deps.Invocations)
		return func(ctx context.Context, id ident.InvocationID) (Outcome, ident.InvocationID, error) {
			o, err := do(ctx, id)
			return o, ident.InvocationID{}, err
		}, nil
	}
}

func purge(journalOnly bool) func(Invocations) func(context.Context, ident.InvocationID) (Outcome, error) {
	return func(i Invocations) func(context.Context, ident.InvocationID) (Outcome, error) {
		return func(ctx context.Context, id ident.InvocationID) (Outcome, error) {
			return i.Purge(ctx, id, journalOnly)
		}
	}
}

// The operations by the last element of their paths.
var verbs = []verb{
	{"cancel", simple(func(i Invocations) func(context.Context, ident.InvocationID) (Outcome, error) { return i.Cancel })},
	{"kill", simple(func(i Invocations) func(context.Context, ident.InvocationID) (Outcome, error) { return i.Kill })},
	{"purge", simple(purge(false))},
	{"purge-journal", simple(purge(true))},
	{"pause", simple(func(i Invocations) func(context.Context, ident.InvocationID) (Outcome, error) { return i.Pause })},
	{"resume", (*Admin).resume},
	{"restart-as-new", (*Admin).restart},
}

// choice is what the parameter deployment asks for.
type choice struct {
	latest bool
	id     ident.DeploymentID // zero: keep, or latest
}

func parseChoice(p params) (choice, error) {
	switch p.deployment {
	case "", "keep", "Keep":
		return choice{}, nil
	case "latest", "Latest":
		return choice{latest: true}, nil
	}
	id, err := ident.ParseDeploymentID(p.deployment)
	if err != nil {
		return choice{}, p.bad(err)
	}
	return choice{id: id}, nil
}

func (a *Admin) resume(p params) (operation, error) {
	to, err := parseChoice(p)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, id ident.InvocationID) (o Outcome, none ident.InvocationID, err error) {
		var pin *Pin
		if to != (choice{}) {
			if pin, o, err = a.pin(ctx, id, to, "resume"); err != nil || o != Done {
				return o, none, err
			}
		}
		o, err = a.deps.Invocations.Resume(ctx, id, pin)
		return o, none, err
	}, nil
}

func (a *Admin) restart(p params) (operation, error) {
	to, err := parseChoice(p)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, id ident.InvocationID) (o Outcome, newID ident.InvocationID, err error) {
		// The prefix of a journal was made at the old deployment; without a prefix the new invocation starts like any other.
		if p.from > 0 && p.deployment == "" || strings.EqualFold(p.deployment, "keep") {
			d, o, err := a.deps.Invocations.Describe(ctx, id)
			if err != nil || o != Done {
				return o, newID, err
			}
			to = choice{id: d.Deployment}
		}
		var pin *Pin
		if !to.id.IsZero() {
			if pin, o, err = a.pin(ctx, id, to, "restart as new"); err != nil || o != Done {
				return o, newID, err
			}
		}
		newID = ident.NewInvocationID(id.PartitionKey(), a.ulid())
		o, err = a.deps.Invocations.RestartAsNew(ctx, id, newID, p.from, pin)
		return o, newID, err
	}, nil
}

// pin chooses the deployment and the protocol version with which an invocation is to go on. The version of its journal stays
// where the deployment speaks it.
func (a *Admin) pin(ctx context.Context, id ident.InvocationID, to choice, doing string) (*Pin, Outcome, error) {
	d, o, err := a.deps.Invocations.Describe(ctx, id)
	if err != nil || o != Done {
		return nil, o, err
	}
	s := a.deps.Registry.Current()
	var dp *schema.Deployment
	if to.latest {
		dp = s.Latest(d.Service)
	} else if dp, err = s.Deployment(to.id); err != nil {
		dp = nil
	}
	if dp == nil {
		return nil, 0, badRequest("The given deployment was not found when trying to " + doing + " the invocation '" + id.String() + "'.")
	}
	version := d.Protocol
	if version == 0 {
		version = min(dp.MaxProtocol, a.cfg.MaxProtocol)
	}
	if version < dp.MinProtocol || version > dp.MaxProtocol {
		return nil, 0, badRequest(fmt.Sprintf("The deployment '%s' speaks the service protocol versions %d to %d, but the invocation '%s' uses version %d.",
			dp.ID, dp.MinProtocol, dp.MaxProtocol, id, version))
	}
	return &Pin{Deployment: dp.ID, Protocol: version}, Done, nil
}

func (c *call) invocationID() (ident.InvocationID, error) {
	id, err := ident.ParseInvocationID(c.param("invocation_id"))
	if err != nil {
		return id, badField("invocation_id", err)
	}
	return id, nil
}

// operate is the handler of PATCH /invocations/{id}/{verb}.
func operate(v verb) handlerFunc {
	return func(c *call) error {
		id, err := c.invocationID()
		if err != nil {
			return err
		}
		q := c.r.URL.Query()
		p := params{deployment: q.Get("deployment"), bad: func(err error) error { return badQuery("deployment", err) }}
		if from := q.Get("from"); from != "" && v.name == "restart-as-new" {
			n, err := strconv.ParseUint(from, 10, 32)
			if err != nil {
				return badQueryString("from", "invalid digit found in string")
			}
			p.from = uint32(n)
		}
		do, err := v.prepare(c.a, p)
		if err != nil {
			return err
		}
		ctx, cancel := c.ctx()
		defer cancel()
		outcome, newID, err := do(ctx, id)
		return c.operated(v.name, id, newID, outcome, err)
	}
}

func (c *call) operated(verb string, id, newID ident.InvocationID, o Outcome, err error) error {
	var api *apiError
	switch {
	case errors.As(err, &api):
		return err
	case err != nil:
		return routingError(err)
	case o == Done && verb == "restart-as-new":
		c.a.respond(c.w, c.r, http.StatusOK, struct {
			ID string `json:"new_invocation_id"`
		}{newID.String()})
	case o == Done:
		c.a.respondEmpty(c.w, c.r, http.StatusOK)
	case o == Accepted && verb != "kill": // a kill that other partitions have to hear of is done for its caller
		c.a.respondEmpty(c.w, c.r, http.StatusAccepted)
	case o == Accepted:
		c.a.respondEmpty(c.w, c.r, http.StatusOK)
	default:
		status, text := outcomeText(verb, o)
		return &apiError{status: status, message: fmt.Sprintf(text, id)}
	}
	return nil
}

// outcomeText is status and message of an operation that was not done.
func outcomeText(verb string, o Outcome) (status int, format string) {
	switch o {
	case NotFound:
		return http.StatusNotFound, "The requested invocation '%s' does not exist"
	case AlreadyCompleted:
		if verb == "resume" {
			return http.StatusConflict, "The invocation '%s' is completed, cannot be resumed."
		}
		return http.StatusConflict, "The invocation '%s' was already completed."
	case NotCompleted:
		return http.StatusConflict, "The invocation '%s' is not yet completed."
	case StillRunning:
		return http.StatusConflict, "The invocation '%s' is still running."
	case NotRunning:
		return http.StatusConflict, "The invocation '%s' is not running, cannot be paused."
	case NotStarted:
		if verb == "resume" {
			return http.StatusTooEarly, "The invocation '%s' is either inboxed or scheduled, cannot be resumed."
		}
		return http.StatusTooEarly, "The invocation '%s' cannot be restarted because it's not running yet."
	case DeploymentFixed:
		return http.StatusConflict, "The invocation '%s' is still running or the deployment id is not pinned yet, deployment id cannot be changed."
	case InputGone:
		return http.StatusGone, "The invocation '%s' cannot be restarted because the input is not available. This indicates that the journal was already purged, or not retained at all."
	case Unsupported:
		return http.StatusUnprocessableEntity, "Restarting the invocation '%s' is not supported. Restarting workflows is not supported, and restarting invocations created using the old service protocol."
	case BadRange:
		return http.StatusBadRequest, "The prefix of the journal '%s' up to 'from' (included) contains some Commands without respective Completions."
	}
	return http.StatusInternalServerError, "The partition gave an unknown answer for the invocation '%s'."
}

// batchText is the message of an operation in a batch that was not done.
func batchText(verb string, o Outcome) string {
	switch o {
	case NotFound:
		return "Invocation '%s' not found"
	case AlreadyCompleted:
		if verb == "resume" {
			return "Invocation '%s' is completed, cannot be resumed"
		}
		return "Invocation '%s' was already completed"
	case NotCompleted:
		return "Invocation '%s' is not yet completed"
	case StillRunning:
		return "Invocation '%s' is still running"
	case NotRunning:
		return "Invocation '%s' is not running, cannot be paused"
	case NotStarted:
		if verb == "resume" {
			return "Invocation '%s' is either inboxed or scheduled, cannot be resumed"
		}
		return "Invocation '%s' cannot be restarted because it's not running yet"
	case DeploymentFixed:
		return "Cannot change deployment ID for invocation '%s'"
	case InputGone:
		return "Invocation '%s' cannot be restarted because the input is not available"
	case Unsupported:
		return "Restarting invocation '%s' is not supported"
	case BadRange:
		return "The prefix of the journal of invocation '%s' contains commands without completions"
	}
	return "The partition gave an unknown answer for invocation '%s'"
}

// deleteInvocation is the old form of cancel, kill and purge: it never says what became of it.
func (c *call) deleteInvocation() error {
	id, err := c.invocationID()
	if err != nil {
		return err
	}
	ctx, cancel := c.ctx()
	defer cancel()
	inv := c.a.deps.Invocations
	mode := "cancel"
	if q := c.r.URL.Query(); q.Has("mode") {
		mode = q.Get("mode")
	}
	switch mode {
	case "cancel", "Cancel":
		_, err = inv.Cancel(ctx, id)
	case "kill", "Kill":
		_, err = inv.Kill(ctx, id)
	case "purge", "Purge":
		_, err = inv.Purge(ctx, id, false)
	default:
		return badQueryString("mode", "unknown variant `"+mode+"`, expected one of `Cancel`, `cancel`, `Kill`, `kill`, `Purge`, `purge`")
	}
	if err != nil {
		return routingError(err)
	}
	c.a.respondEmpty(c.w, c.r, http.StatusAccepted)
	return nil
}

// Bounds of a batch.
const (
	maxBatch    = 1000
	batchAtOnce = 16 // operations under way at the same time
)

type batchRequest struct {
	IDs        *[]string `json:"invocation_ids"`
	Deployment string    `json:"deployment,omitempty"`
}

type batchFailure struct {
	ID    string `json:"invocation_id"`
	Error string `json:"error"`
}

type restarted struct {
	Old string `json:"old_invocation_id"`
	New string `json:"new_invocation_id"`
}

// batch is the handler of POST /internal/invocations_batch_operations/{verb}. Each invocation is on its own.
func batch(v verb) handlerFunc {
	return func(c *call) error {
		var req batchRequest
		if err := c.decode(&req); err != nil {
			return err
		}
		ids, err := req.parse()
		if err != nil {
			return err
		}
		do, err := v.prepare(c.a, params{deployment: req.Deployment, bad: func(err error) error { return badField("deployment", err) }})
		if err != nil {
			return err
		}
		ctx, cancel := c.ctx()
		defer cancel()
		succeeded, failed := runBatch(ctx, v.name, ids, do)
		c.a.respond(c.w, c.r, http.StatusOK, struct {
			Succeeded []any          `json:"succeeded"`
			Failed    []batchFailure `json:"failed"`
		}{succeeded, failed})
		return nil
	}
}

func (r *batchRequest) parse() ([]ident.InvocationID, error) {
	if r.IDs == nil {
		return nil, missingField("invocation_ids")
	}
	ids := make([]ident.InvocationID, len(*r.IDs))
	for i, s := range *r.IDs {
		id, err := ident.ParseInvocationID(s)
		if err != nil {
			return nil, mismatch(fmt.Errorf("invocation_ids[%d]: %w", i, err))
		}
		ids[i] = id
	}
	if len(ids) > maxBatch {
		return nil, batchTooLarge(len(ids))
	}
	return ids, nil
}

// runBatch does an operation to many invocations and lists the results in the order of the ids.
func runBatch(ctx context.Context, verb string, ids []ident.InvocationID, do operation) (succeeded []any, failed []batchFailure) {
	type result struct {
		ok      any
		problem string
	}
	results := make([]result, len(ids))
	var g errgroup.Group
	g.SetLimit(batchAtOnce)
	for i, id := range ids {
		g.Go(func() error {
			o, newID, err := do(ctx, id)
			switch {
			case err != nil:
				results[i].problem = err.Error()
			case o != Done && o != Accepted:
				results[i].problem = fmt.Sprintf(batchText(verb, o), id)
			case verb == "restart-as-new":
				results[i].ok = restarted{id.String(), newID.String()}
			default:
				results[i].ok = id.String()
			}
			return nil
		})
	}
	_ = g.Wait() // the functions have no errors
	succeeded, failed = []any{}, []batchFailure{}
	for i, r := range results {
		if r.ok != nil {
			succeeded = append(succeeded, r.ok)
		} else {
			failed = append(failed, batchFailure{ids[i].String(), r.problem})
		}
	}
	return succeeded, failed
}
