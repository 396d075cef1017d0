package invokers

import (
	"sync/atomic"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
)

// Pool is what the invokers of all partitions of a node share: concurrency slots, memory, prepared
// endpoints, transports. It has no goroutine.
type Pool struct {
	cfg     Config
	deps    Deps
	metrics *metrics

	slots     slots
	memory    memory
	draining  atomic.Int32 // attempts that wait for the end of a response
	endpoints endpointCache
}

// NewPool makes the pool of a node. It registers its metrics with deps.Metrics.
func NewPool(cfg Config, deps Deps) (*Pool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := deps.setDefaults(); err != nil {
		return nil, err
	}
	p := &Pool{cfg: cfg, deps: deps}
	p.slots.limit, p.slots.shares = cfg.ConcurrencyLimit, make(map[ident.DeploymentID]*share)
	p.memory.limit = cfg.MemoryLimit
	m, err := newMetrics(deps.Metrics, p)
	if err != nil {
		return nil, err
	}
	p.metrics = m
	return p, nil
}

// Open starts the invoker of a led partition. The caller closes it when it no longer leads.
func (p *Pool) Open(partition cluster.PartitionID, host Host) *Partition {
	return newPartition(p, partition, host)
}

// memory is the budget of the node for bytes that attempts buffer.
type memory struct {
	limit int64
	used  atomic.Int64
}

// take reserves n more bytes for who holds some already. It succeeds when they fit, or when nobody else holds any: one attempt
// must always be able to go on, however big its journal is.
func (m *memory) take(n, held int64) bool {
	used := m.used.Add(n)
	if used <= m.limit || used == held+n {
		return true
	}
	m.used.Add(-n)
	return false
}

func (m *memory) give(n int64) { m.used.Add(-n) }

// lease is what one attempt has reserved. It is not safe for concurrent use.
type lease struct {
	m    *memory
	held int64
}

// grow reserves n more bytes.
func (l *lease) grow(n int64) bool {
	if n <= 0 {
		return true
	}
	if !l.m.take(n, l.held) {
		return false
	}
	l.held += n
	return true
}

// shrink gives n bytes back, or what is left if it was released before.
func (l *lease) shrink(n int64) {
	n = min(n, l.held)
	l.held -= n
	l.m.give(n)
}

// release gives everything back. It may be called again.
func (l *lease) release() {
	if l.held != 0 {
		l.m.give(l.held)
		l.held = 0
	}
}

// handlerOptions are the options of a target on a deployment. A handler that the deployment no longer has
// gets those of its service, or the server's: the service itself will answer that it does not know it.
func handlerOptions(s *schema.Schema, d *schema.Deployment, service, handler string) schema.Options {
	if o, err := s.Options(d.ID, service, handler); err == nil {
		return o
	}
	for i := range d.Services {
		if d.Services[i].Name == service {
			return d.Services[i].Options
		}
	}
	def := s.Defaults()
	o := schema.Options{InactivityTimeout: def.InactivityTimeout, AbortTimeout: def.AbortTimeout, LazyState: def.LazyState, Retry: def.Retry}
	if d.ProtocolType == schema.RequestResponse {
		o.InactivityTimeout = 0
	}
	return o
}

// resolved is where an attempt goes and how.
type resolved struct {
	deployment *schema.Deployment
	endpoint   *endpoint
	version    uint32
	options    schema.Options
}

// resolve picks the deployment and the protocol version: those that the invocation is pinned to, or the
// latest of its service and the highest version that both sides speak.
func (p *Pool) resolve(s *schema.Schema, j *Journal) (r resolved, f *failure) {
	service, handler := j.Target.GetService(), j.Target.GetHandler()
	r.version = j.ProtocolVersion
	if j.Deployment.IsZero() {
		r.deployment = s.Latest(service)
		if r.deployment == nil {
			return r, unseen(newFailure(codeNoDeployment, "no deployment was found for the service '%s'; register one that serves it", service))
		}
		if r.version, f = pickVersion(r.deployment, p.cfg.maxVersion()); f != nil {
			return r, f
		}
	} else {
		var err error
		if r.deployment, err = s.Deployment(j.Deployment); err != nil {
			return r, unseen(newFailure(codeNoDeployment, "the invocation runs on deployment '%s', which was removed; resume it on another one", j.Deployment))
		}
		if r.version < minVersion || r.version > maxVersion {
			return r, unseen(newFailure(codeVersionGone, "the invocation runs with version %d of the service protocol, which this server no longer supports", r.version))
		}
	}
	r.options = handlerOptions(s, r.deployment, service, handler)
	var err error
	if r.endpoint, err = p.endpoints.get(r.deployment, &p.cfg); err != nil {
		return r, unseen(newFailure(codeNetwork, "address of deployment '%s': %v", r.deployment.ID, err))
	}
	return r, nil
}

// The protocol versions that this server can replay and decode.
const (
	minVersion = 5
	maxVersion = 7
)

func pickVersion(d *schema.Deployment, highest uint32) (uint32, *failure) {
	v := min(d.MaxProtocol, highest)
	if v < minVersion || v < d.MinProtocol {
		return 0, unseen(newFailure(codeNoCommonVersion,
			"deployment '%s' speaks versions %d to %d of the service protocol, this server %d to %d; use an SDK that shares one",
			d.ID, d.MinProtocol, d.MaxProtocol, minVersion, highest))
	}
	return v, nil
}

func unseen(f *failure) *failure { f.unseen = true; return f }
