// Package registry keeps a node's view of the schema current and changes it.
//
// The schema is stored in the metadata as one value per deployment and an index. Every change is one transaction that writes the
// index and the deployments that it touches, on condition that the index is the one it was computed from: so changes are
// serialised, and the index version is the version of the schema. The index names the version of each deployment's value; a
// snapshot is built only from a set that matches, never from parts of two.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"perdure/control/ident"
	"perdure/control/metadata"
	"perdure/control/schema"
)

// Waits between tries to reach the metadata.
const (
	firstBackoff = 10 * time.Millisecond
	lastBackoff  = time.Second
)

// Registry is one node's view. Current may be called from anywhere at any time; Run keeps the view current.
type Registry struct {
	store metadata.Store
	log   *slog.Logger
	ready chan struct{}
	once  sync.Once

	current atomic.Pointer[schema.Schema]

	mu struct {
		sync.Mutex
		// decoded values by deployment, so that unchanged ones are shared by all snapshots.
		decoded map[ident.DeploymentID]decoded
	}
}

type decoded struct {
	version    uint64
	deployment *schema.Deployment
}

// New makes a registry with an empty schema of version 0. Services are resolved with the defaults. It starts nothing.
func New(store metadata.Store, defaults schema.Defaults, log *slog.Logger) *Registry {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Registry{store: store, log: log, ready: make(chan struct{})}
	r.mu.decoded = make(map[ident.DeploymentID]decoded)
	r.current.Store(schema.New(0, defaults, nil))
	return r
}

// Current is the newest snapshot that this node knows. Its version never goes down.
func (r *Registry) Current() *schema.Schema { return r.current.Load() }

// Ready is closed when the schema has been read for the first time.
func (r *Registry) Ready() <-chan struct{} { return r.ready }

// Run follows the metadata until ctx ends. It returns the cause of that.
func (r *Registry) Run(ctx context.Context) error {
	w := r.store.Watch(metadata.SchemaPrefix)
	defer w.Close()
	if err := r.reload(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.C():
		}
		s, err := r.assemble(w.Snapshot())
		switch {
		case errors.Is(err, errTorn):
			// What is cached may lag key by key; the store itself shows whole transactions.
			if err := r.reload(ctx); err != nil {
				return err
			}
		case err != nil:
			r.log.Error("cannot read the stored schema, keeping the one before", "version", r.Current().Version(), "err", err)
		default:
			r.install(s)
		}
	}
}

// reload reads the schema from the store, as often as it takes.
func (r *Registry) reload(ctx context.Context) error {
	for wait := firstBackoff; ; wait = min(2*wait, lastBackoff) {
		s, _, err := r.load(ctx)
		if err == nil {
			r.install(s)
			r.once.Do(func() { close(r.ready) })
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, metadata.ErrClosed) {
			return err
		}
		r.log.Warn("cannot load the schema, trying again", "err", err)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// load reads the schema and the version of each deployment's value, linearizably.
func (r *Registry) load(ctx context.Context) (*schema.Schema, schema.Index, error) {
	list, err := r.store.List(ctx, metadata.SchemaPrefix)
	if err != nil {
		return nil, schema.Index{}, fmt.Errorf("load schema: %w", err)
	}
	s, err := r.assemble(list)
	if err != nil {
		return nil, schema.Index{}, fmt.Errorf("load schema: %w", err)
	}
	x, _, err := index(list)
	return s, x, err
}

// errTorn says that a set of values is not one snapshot.
var errTorn = errors.New("the schema index and the deployments do not match")

// index finds the index among the values; its version is 0 when there is none yet.
func index(list []metadata.KeyValue) (schema.Index, uint64, error) {
	for _, kv := range list {
		if kv.Key == metadata.SchemaIndexKey {
			x, err := schema.DecodeIndex(kv.Data)
			return x, kv.Version, err
		}
	}
	return schema.Index{}, 0, nil
}

// assemble builds the snapshot of a set of values.
func (r *Registry) assemble(list []metadata.KeyValue) (*schema.Schema, error) {
	x, version, err := index(list)
	if err != nil {
		return nil, err
	}
	values := make(map[string]metadata.Value, len(list))
	for _, kv := range list {
		if id, ok := strings.CutPrefix(kv.Key, metadata.DeploymentPrefix); ok {
			values[id] = kv.Value
		}
	}
	deployments := make([]*schema.Deployment, 0, len(x.Deployments))
	for printed, want := range x.Deployments {
		v, ok := values[printed]
		if !ok || v.Version != want {
			return nil, fmt.Errorf("%w: %s is at version %d, the index of version %d says %d", errTorn, printed, v.Version, version, want)
		}
		d, err := r.decode(printed, v)
		if err != nil {
			return nil, err
		}
		deployments = append(deployments, d)
	}
	return r.Current().With(version, deployments), nil
}

func (r *Registry) decode(printed string, v metadata.Value) (*schema.Deployment, error) {
	id, err := ident.ParseDeploymentID(printed)
	if err != nil {
		return nil, fmt.Errorf("decode deployment id %q: %w", printed, err)
	}
	r.mu.Lock()
	known := r.mu.decoded[id]
	r.mu.Unlock()
	if known.version == v.Version {
		return known.deployment, nil
	}
	d, err := schema.DecodeDeployment(id, v.Data)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.decoded[id] = decoded{v.Version, d}
	return d, nil
}

// install makes s the current snapshot unless there is one as new.
func (r *Registry) install(s *schema.Schema) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Version() <= r.Current().Version() {
		return
	}
	r.current.Store(s)
	for id := range r.mu.decoded {
		if _, err := s.Deployment(id); err != nil {
			delete(r.mu.decoded, id)
		}
	}
	r.log.Info("schema changed", "version", s.Version(), "deployments", len(s.Deployments()), "services", len(s.ServiceNames()))
}

// Update changes the schema by compare-and-set: f gets the newest snapshot, possibly several times, and returns the change to
// make, or the error to give up with. A change whose snapshot is the one that f got changes nothing. On return the change is
// durable and Current shows it. When the metadata cannot be reached, Update tries until ctx ends. The outcome is unknown when
// the error is metadata.ErrUnknownOutcome; the same Update may then be made again.
func (r *Registry) Update(ctx context.Context, f func(*schema.Schema) (*schema.Change, error)) (*schema.Change, error) {
	u := update{r: r}
	for wait := firstBackoff; ; wait = min(2*wait, lastBackoff) {
		c, err := u.try(ctx, f)
		if err == nil {
			return c, nil
		}
		var conflict *metadata.ConflictError
		retry := errors.As(err, &conflict) || errors.Is(err, metadata.ErrUnavailable) || errors.Is(err, metadata.ErrUnknownOutcome) || errors.Is(err, errTorn)
		if !retry {
			return nil, u.failed(err)
		}
		if sleep(ctx, wait) != nil {
			return nil, u.failed(err)
		}
	}
}

// update is one Update on its way.
type update struct {
	r *Registry
	// sent are writes whose outcome is not known.
	sent []sent
}

// sent is a transaction as it can be recognised: the value of one key at one version.
type sent struct {
	key     string
	version uint64 // of the key, when it was applied; 0 = the key was deleted
	data    string
	change  *schema.Change
}

func (u *update) failed(err error) error {
	if len(u.sent) > 0 && !errors.Is(err, metadata.ErrUnknownOutcome) {
		return fmt.Errorf("update schema: %w: %w", metadata.ErrUnknownOutcome, err)
	}
	return err
}

func (u *update) try(ctx context.Context, f func(*schema.Schema) (*schema.Change, error)) (*schema.Change, error) {
	old, x, err := u.r.load(ctx)
	if err != nil {
		return nil, err
	}
	if c, err := u.recognise(ctx, old); c != nil || err != nil {
		return c, err
	}
	c, err := f(old)
	if err != nil {
		return nil, err
	}
	if c.Schema == old {
		u.r.install(old)
		return c, nil
	}
	compares, puts, mine, err := transaction(old, x, c)
	if err != nil {
		return nil, err
	}
	if _, err := u.r.store.Txn(ctx, compares, puts); err != nil {
		if errors.Is(err, metadata.ErrUnknownOutcome) {
			u.sent = append(u.sent, mine)
		}
		return nil, fmt.Errorf("store schema: %w", err)
	}
	u.r.install(c.Schema)
	return c, nil
}

// recognise looks whether a write with unknown outcome was applied after all.
func (u *update) recognise(ctx context.Context, now *schema.Schema) (*schema.Change, error) {
	for _, s := range u.sent {
		v, err := u.r.store.Get(ctx, s.key)
		switch {
		case errors.Is(err, metadata.ErrNotFound):
			if s.version == 0 {
				u.r.install(now)
				return s.change, nil
			}
		case err != nil:
			return nil, fmt.Errorf("look for the outcome of an update: %w", err)
		case s.version != 0 && v.Version == s.version && string(v.Data) == s.data:
			u.r.install(now)
			return s.change, nil
		}
	}
	return nil, nil
}

// transaction is what makes the change c of old in the metadata, and how it can be recognised afterwards.
func transaction(old *schema.Schema, x schema.Index, c *schema.Change) ([]metadata.Compare, []metadata.Put, sent, error) {
	id := c.Deployment.ID.String()
	key := metadata.DeploymentKey(id)
	versions := make(map[string]uint64, len(x.Deployments)+1)
	for k, v := range x.Deployments {
		versions[k] = v
	}
	put := metadata.Put{Key: key}
	mine := sent{key: key, change: c}
	if _, err := c.Schema.Deployment(c.Deployment.ID); err != nil {
		put.Delete = true
		delete(versions, id)
	} else {
		data, err := schema.EncodeDeployment(c.Deployment)
		if err != nil {
			return nil, nil, mine, err
		}
		if len(data) > metadata.MaxValue {
			return nil, nil, mine, fmt.Errorf("store schema: deployment %s takes %d bytes with its JSON schemas and documentation, the limit is %d: split it", id, len(data), metadata.MaxValue)
		}
		put.Data = data
		versions[id] = x.Deployments[id] + 1
		mine.version, mine.data = versions[id], string(data)
	}
	data, err := schema.EncodeIndex(versions)
	if err != nil {
		return nil, nil, mine, err
	}
	compares := []metadata.Compare{
		{Key: metadata.SchemaIndexKey, Precondition: metadata.AtVersion(old.Version())}, // version 0 is Absent
		{Key: key, Precondition: metadata.AtVersion(x.Deployments[id])},
	}
	return compares, []metadata.Put{{Key: metadata.SchemaIndexKey, Data: data}, put}, mine, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
