// Package schema is what a cluster knows about user code: deployments keyed by normalised URL or Lambda ARN, the revisions of
// services that they implement, and the handlers with their effective options.
//
// A Schema is an immutable snapshot: readers share it and changes make a new one. All changes are pure functions
// old + discovery -> new | conflict; clock and identifiers are passed in. Where a snapshot is stored and how nodes learn of a newer
// one is the business of package registry.
package schema

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"perdure/control/duration"
	"perdure/control/ident"
)

// Defaults are the server's options for services that set none, and the server's limits.
type Defaults struct {
	InactivityTimeout    time.Duration
	AbortTimeout         time.Duration
	JournalRetention     time.Duration
	IdempotencyRetention time.Duration
	WorkflowRetention    time.Duration
	LazyState            bool
	Retry                RetryPolicy

	// MaxJournalRetention, MaxIdempotencyRetention and MaxWorkflowRetention clamp what services ask for; nil means no limit,
	// and 0 that nothing is kept. Too low, and clients cannot fetch results that the service promised to keep.
	MaxJournalRetention     *time.Duration
	MaxIdempotencyRetention *time.Duration
	MaxWorkflowRetention    *time.Duration
	// MaxAttempts clamps what services ask for; 0 means no limit.
	MaxAttempts uint64
}

// DefaultDefaults are those that a server without configuration uses.
func DefaultDefaults() Defaults {
	return Defaults{
		InactivityTimeout:    time.Minute,
		AbortTimeout:         10 * time.Minute,
		JournalRetention:     24 * time.Hour,
		IdempotencyRetention: 24 * time.Hour,
		WorkflowRetention:    24 * time.Hour,
		Retry: RetryPolicy{
			InitialInterval: 500 * time.Millisecond, Factor: 2, MaxInterval: time.Minute, MaxAttempts: 70, OnMaxAttempts: Pause,
		},
	}
}

// Validate says what is wrong with d.
func (d Defaults) Validate() error {
	if d.InactivityTimeout < 0 || d.AbortTimeout < 0 || d.JournalRetention < 0 || d.IdempotencyRetention < 0 || d.WorkflowRetention < 0 {
		return fmt.Errorf("schema defaults: timeouts and retentions must not be negative")
	}
	if d.Retry.Factor < 1 {
		return fmt.Errorf("schema defaults: retry factor is %g, must be at least 1", d.Retry.Factor)
	}
	if d.Retry.OnMaxAttempts != Pause && d.Retry.OnMaxAttempts != Kill {
		return fmt.Errorf("schema defaults: on-max-attempts is %q, must be Pause or Kill", d.Retry.OnMaxAttempts)
	}
	return nil
}

// Schema is an immutable snapshot of all deployments. The zero value is not usable; New makes an empty one too.
type Schema struct {
	version     uint64
	defaults    Defaults
	deployments map[ident.DeploymentID]*resolved
	latest      map[string]*service
	ordered     []*Deployment // by creation, then id
	names       []string      // of the services, sorted
}

// resolved is a deployment with its services ready for lookups. It is shared between snapshots.
type resolved struct {
	stored   *Deployment // as it was given to New
	d        *Deployment // copy with resolved options
	services map[string]*service
}

type service struct {
	rev      *ServiceRevision
	d        *Deployment
	handlers map[string]*Handler
}

// New makes a snapshot. version is the version of the stored index. The deployments must not be changed afterwards.
func New(version uint64, defaults Defaults, deployments []*Deployment) *Schema {
	return build(nil, version, defaults, deployments)
}

// With makes a snapshot of other deployments with the same defaults; what is in both is shared.
func (s *Schema) With(version uint64, deployments []*Deployment) *Schema {
	return build(s, version, s.defaults, deployments)
}

func build(old *Schema, version uint64, defaults Defaults, deployments []*Deployment) *Schema {
	s := &Schema{
		version: version, defaults: defaults,
		deployments: make(map[ident.DeploymentID]*resolved, len(deployments)),
		latest:      make(map[string]*service),
	}
	for _, d := range deployments {
		var r *resolved
		if old != nil {
			if o := old.deployments[d.ID]; o != nil && (o.stored == d || o.d == d) {
				r = o
			}
		}
		if r == nil {
			r = resolve(d, &defaults)
		}
		s.deployments[d.ID] = r
		s.ordered = append(s.ordered, r.d)
	}
	slices.SortFunc(s.ordered, func(a, b *Deployment) int {
		return cmp.Or(cmp.Compare(a.CreatedMs, b.CreatedMs), slices.Compare(a.ID[:], b.ID[:]))
	})
	for _, d := range s.ordered {
		for i := range d.Services {
			name := d.Services[i].Name
			sv := s.deployments[d.ID].services[name]
			if l := s.latest[name]; l == nil || sv.rev.Revision >= l.rev.Revision {
				s.latest[name] = sv
			}
		}
	}
	for name := range s.latest {
		s.names = append(s.names, name)
	}
	slices.Sort(s.names)
	return s
}

// resolve copies d so that options can be filled in, and indexes its services.
func resolve(d *Deployment, defaults *Defaults) *resolved {
	c := *d
	c.Services = slices.Clone(d.Services)
	r := &resolved{stored: d, d: &c, services: make(map[string]*service, len(c.Services))}
	for i := range c.Services {
		rev := &c.Services[i]
		rev.Deployment = d.ID
		rev.Handlers = slices.Clone(rev.Handlers)
		rev.Options = defaults.options(d, &rev.Overrides, nil)
		_, rev.Notes = defaults.applied(d, "service", defaults.retentions(rev))
		sv := &service{rev: rev, d: &c, handlers: make(map[string]*Handler, len(rev.Handlers))}
		for j := range rev.Handlers {
			h := &rev.Handlers[j]
			h.Service, h.ServiceType, h.Deployment, h.Revision = rev.Name, rev.Type, d.ID, rev.Revision
			h.Options = defaults.options(d, &rev.Overrides, &h.Overrides)
			h.Applied, h.Notes = defaults.applied(d, "handler", h.Overrides)
			sv.handlers[h.Name] = h
		}
		r.services[rev.Name] = sv
	}
	return r
}

// options merges handler > service > defaults and applies the limits.
func (d *Defaults) options(dp *Deployment, service, handler *Overrides) Options {
	o := Options{
		Public: true, InactivityTimeout: d.InactivityTimeout, AbortTimeout: d.AbortTimeout,
		JournalRetention: d.JournalRetention, IdempotencyRetention: d.IdempotencyRetention, WorkflowRetention: d.WorkflowRetention,
		LazyState: d.LazyState, Retry: d.Retry,
	}
	o.apply(service)
	if handler != nil {
		public := o.Public
		o.apply(handler)
		o.Public = o.Public && public // a private service has no public handlers
	}
	if dp.ProtocolType == RequestResponse {
		o.InactivityTimeout = 0
	}
	o.JournalRetention = clamp(o.JournalRetention, d.MaxJournalRetention)
	o.IdempotencyRetention = clamp(o.IdempotencyRetention, d.MaxIdempotencyRetention)
	o.WorkflowRetention = clamp(o.WorkflowRetention, d.MaxWorkflowRetention)
	if d.MaxAttempts > 0 && (o.Retry.MaxAttempts == 0 || o.Retry.MaxAttempts > d.MaxAttempts) {
		o.Retry.MaxAttempts = d.MaxAttempts
	}
	return o
}

// retentions are the overrides of a service with the server's defaults for the retentions that it leaves open: those may be
// beyond the server's limits, too.
func (d *Defaults) retentions(rev *ServiceRevision) Overrides {
	o := Overrides{JournalRetention: &d.JournalRetention, IdempotencyRetention: &d.IdempotencyRetention}
	if rev.Type == Workflow {
		o.WorkflowRetention = &d.WorkflowRetention
	}
	o.merge(rev.Overrides)
	return o
}

// applied are the overrides of a service or a handler, as who says, as far as they have an effect in the deployment.
func (d *Defaults) applied(dp *Deployment, who string, o Overrides) (Overrides, []Note) {
	var notes []Note
	if t := o.InactivityTimeout; t != nil && dp.ProtocolType == RequestResponse {
		notes = append(notes, Note{"RT0021", fmt.Sprintf("The configured inactivity_timeout %s will not be applied because the %s is exposed in Request/Response mode.",
			duration.Format(*t), who)})
		o.InactivityTimeout = nil
	}
	for _, r := range []struct {
		name     string
		override **time.Duration
		limit    *time.Duration
	}{
		{"journal_retention", &o.JournalRetention, d.MaxJournalRetention},
		{"idempotency_retention", &o.IdempotencyRetention, d.MaxIdempotencyRetention},
		{"workflow_completion_retention", &o.WorkflowRetention, d.MaxWorkflowRetention},
	} {
		if *r.override == nil {
			continue
		}
		if v := clamp(**r.override, r.limit); v != **r.override {
			notes = append(notes, Note{"RT0022", "The configured " + r.name + " is clamped to the maximum server limit."})
			*r.override = &v
		}
	}
	return o, notes
}

func clamp(v time.Duration, limit *time.Duration) time.Duration {
	if limit == nil {
		return v
	}
	return min(v, *limit)
}

func (o *Options) apply(v *Overrides) {
	set(&o.Public, v.Public)
	set(&o.InactivityTimeout, v.InactivityTimeout)
	set(&o.AbortTimeout, v.AbortTimeout)
	set(&o.JournalRetention, v.JournalRetention)
	set(&o.IdempotencyRetention, v.IdempotencyRetention)
	set(&o.WorkflowRetention, v.WorkflowRetention)
	set(&o.LazyState, v.LazyState)
	set(&o.Retry.InitialInterval, v.Retry.InitialInterval)
	set(&o.Retry.Factor, v.Retry.Factor)
	set(&o.Retry.MaxInterval, v.Retry.MaxInterval)
	set(&o.Retry.MaxAttempts, v.Retry.MaxAttempts)
	set(&o.Retry.OnMaxAttempts, v.Retry.OnMaxAttempts)
}

func set[T any](dst *T, v *T) {
	if v != nil {
		*dst = *v
	}
}

// Version is the version of the stored index that the snapshot was made from. It only grows.
func (s *Schema) Version() uint64 { return s.version }

// Defaults are the server's defaults that the snapshot was resolved with.
func (s *Schema) Defaults() Defaults { return s.defaults }

// Service is the latest revision of a service. The error is a *NotFoundError.
func (s *Schema) Service(name string) (*ServiceRevision, error) {
	if sv := s.latest[name]; sv != nil {
		return sv.rev, nil
	}
	return nil, &NotFoundError{Service: name}
}

// Handler is a handler of the latest revision of a service, with effective options. The error is a *NotFoundError.
func (s *Schema) Handler(service, handler string) (*Handler, error) {
	sv := s.latest[service]
	if sv == nil {
		return nil, &NotFoundError{Service: service}
	}
	if h := sv.handlers[handler]; h != nil {
		return h, nil
	}
	return nil, &NotFoundError{Service: service, Handler: handler}
}

// HandlerAt is a handler as a certain deployment implements it, for invocations that are pinned to it. The error is a
// *NotFoundError or a *DeploymentNotFoundError.
func (s *Schema) HandlerAt(dp ident.DeploymentID, service, handler string) (*Handler, error) {
	r := s.deployments[dp]
	if r == nil {
		return nil, &DeploymentNotFoundError{ID: dp}
	}
	sv := r.services[service]
	if sv == nil {
		return nil, &NotFoundError{Service: service}
	}
	if h := sv.handlers[handler]; h != nil {
		return h, nil
	}
	return nil, &NotFoundError{Service: service, Handler: handler}
}

// Options are the effective options of a handler as a certain deployment implements it; errors as HandlerAt.
func (s *Schema) Options(dp ident.DeploymentID, service, handler string) (Options, error) {
	h, err := s.HandlerAt(dp, service, handler)
	if err != nil {
		return Options{}, err
	}
	return h.Options, nil
}

// Deployment is a deployment by id. The error is a *DeploymentNotFoundError.
func (s *Schema) Deployment(id ident.DeploymentID) (*Deployment, error) {
	if r := s.deployments[id]; r != nil {
		return r.d, nil
	}
	return nil, &DeploymentNotFoundError{ID: id}
}

// Latest is the deployment that new invocations of a service go to, nil when the service is unknown.
func (s *Schema) Latest(service string) *Deployment {
	if sv := s.latest[service]; sv != nil {
		return sv.d
	}
	return nil
}

// Deployments are all deployments, oldest first. The slice is the snapshot's: do not change it.
func (s *Schema) Deployments() []*Deployment { return s.ordered }

// ServiceNames are the names of all services, sorted. The slice is the snapshot's: do not change it.
func (s *Schema) ServiceNames() []string { return s.names }

// NotFoundError says that no deployment serves the service, or that its latest revision has no such handler.
type NotFoundError struct {
	Service string
	// Handler is empty when the service is unknown.
	Handler string
}

// Error is the text that callers of the ingress know.
func (e *NotFoundError) Error() string {
	if e.Handler == "" {
		return "service '" + e.Service + "' not found, make sure to register the service before calling it."
	}
	return "the service '" + e.Service + "' exists, but the handler '" + e.Handler +
		"' was not found, check that the handler exists in the latest registered service version."
}

// DeploymentNotFoundError says that a deployment is not, or no longer, registered.
type DeploymentNotFoundError struct{ ID ident.DeploymentID }

// Error is the text that users of the admin API know.
func (e *DeploymentNotFoundError) Error() string {
	return "The requested deployment '" + e.ID.String() + "' does not exist"
}
