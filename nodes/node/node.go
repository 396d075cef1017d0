package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"perdure/control/cluster"
	"perdure/control/registry"
	"perdure/control/schema"
	"perdure/invokers"
	"perdure/invokers/discovery"
	"perdure/invokers/h2"
	"perdure/invokers/identity"
	"perdure/invokers/lambda"
	"perdure/invokers/tracing"
	"perdure/invokers/transport"
	"perdure/nodes/bifrost"
	"perdure/nodes/ingress"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
	"perdure/nodes/logstore"
	"perdure/nodes/partition"
	"perdure/nodes/partition/store"
	nodenet "perdure/nodes/transport"
	"perdure/nodes/worker"
)

// Node is a running server. Its parts are started in the order of their needs and stopped in the reverse one.
type Node struct {
	cfg      Config
	log      *slog.Logger
	version  string
	began    time.Time
	self     cluster.GenNodeID
	registry *prometheus.Registry // nil: no metrics
	tracer   *tracing.Tracer      // nil: no spans

	listeners struct{ ingress, admin, fabric net.Listener }
	worker    atomic.Pointer[worker.Worker]
	stopping  atomic.Bool
	done      chan error // 1 slot: what ended the node

	stopOnce sync.Once
	stopErr  error
	// closers undo what was started, last first.
	closers []closer
}

type closer struct {
	name string
	stop func(context.Context) error
}

// Start starts a node with all its roles and returns when it can serve. version is what it tells others that it is. ctx bounds
// the start only.
//
// Errors are for the person who started it: a port in use, a directory that belongs to another node or is locked by another process, data of
// another cluster. Nothing runs on after an error.
func Start(ctx context.Context, cfg Config, version string, logger *slog.Logger) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: logger.With("node", cfg.NodeName), version: version, began: time.Now(), done: make(chan error, 1)}
	defer func() {
		if err != nil {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout)
			defer cancel()
			err = errors.Join(err, n.Shutdown(stop))
		}
	}()
	if !cfg.DisablePrometheus {
		n.registry = prometheus.NewRegistry()
		n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	if err := n.startTracing(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.InitializationTimeout)
	defer cancel()
	if err := n.listen(); err != nil {
		return nil, err
	}
	m, err := n.join(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.run(ctx, m); err != nil {
		return nil, err
	}
	n.log.Info("the node is ready", "id", n.self.String(), "after", time.Since(n.began).Round(time.Millisecond))
	return n, nil
}

// Addresses are the URLs under which the node is reached.
func (n *Node) Addresses() Addresses {
	return Addresses{
		Ingress: n.cfg.Ingress.Advertised(n.listeners.ingress.Addr()),
		Admin:   n.cfg.Admin.Advertised(n.listeners.admin.Addr()),
		Fabric:  n.cfg.Fabric.Advertised(n.listeners.fabric.Addr()),
	}
}

// Done yields the error that ended the node, if it ends on its own. Shutdown must be called then, too.
func (n *Node) Done() <-chan error { return n.done }

// Shutdown stops the node: it takes no more requests, lets those under way finish as long as ctx allows, and makes the stores
// durable. It may be called more than once.
func (n *Node) Shutdown(ctx context.Context) error {
	n.stopOnce.Do(func() {
		n.stopping.Store(true)
		var errs []error
		for i := len(n.closers) - 1; i >= 0; i-- {
			c := n.closers[i]
			if err := c.stop(ctx); err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", c.name, err))
			}
		}
		n.stopErr = errors.Join(errs...)
	})
	return n.stopErr
}

func (n *Node) onStop(name string, stop func(context.Context) error) {
	n.closers = append(n.closers, closer{name, stop})
}

// fail ends the node on its own; the first reason counts.
func (n *Node) fail(err error) {
	select {
	case n.done <- err:
	default:
	}
}

func (n *Node) statuses() []worker.Status {
	if w := n.worker.Load(); w != nil {
		return w.Statuses()
	}
	return nil
}

func (n *Node) isReady() bool {
	w := n.worker.Load()
	if w == nil {
		return false
	}
	select {
	case <-w.Ready():
		return true
	default:
		return false
	}
}

// listen takes the ports before anything touches the disk, so that a port in use is told at once.
func (n *Node) listen() error {
	for _, l := range []struct {
		what, address string
		into          *net.Listener
	}{
		{"ingress", n.cfg.IngressAddress(), &n.listeners.ingress},
		{"admin API", n.cfg.AdminAddress(), &n.listeners.admin},
		{"node port", n.cfg.FabricAddress(), &n.listeners.fabric},
	} {
		ln, err := net.Listen("tcp", l.address)
		if err != nil {
			return fmt.Errorf("listen on %s for the %s: %w", l.address, l.what, err)
		}
		*l.into = ln
		n.onStop(l.what+" listener", func(context.Context) error {
			if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
	}
	return nil
}

// registerer is where parts register their metrics; nil when there are none.
func (n *Node) registerer() prometheus.Registerer {
	if n.registry == nil {
		return nil
	}
	return n.registry
}

// run starts all that needs membership: log, processors, invokers and the servers.
func (n *Node) run(ctx context.Context, m *membership) error {
	b, err := n.openLog(ctx, m)
	if err != nil {
		return err
	}
	schemas, err := n.openSchemas(ctx, m)
	if err != nil {
		return err
	}
	t, pool, err := n.openInvokers(schemas)
	if err != nil {
		return err
	}
	w := n.startWorker(m, b, pool)
	if err := n.serveAll(m, schemas, t, w); err != nil {
		return err
	}
	select {
	case <-w.Ready():
		return nil
	case err := <-n.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the partitions are not ready: %w%s", context.Cause(ctx), lastErrors(w.Statuses()))
	}
}

func lastErrors(statuses []worker.Status) (s string) {
	for _, st := range statuses {
		if st.LastError != "" {
			s += fmt.Sprintf("; partition %d: %s", st.Partition, st.LastError)
		}
	}
	return s
}

// openLog opens the log server and the logs.
func (n *Node) openLog(ctx context.Context, m *membership) (*bifrost.Bifrost, error) {
	ls, err := logstore.Open(logstore.Config{
		Dir: filepath.Join(n.cfg.DataDir(), "log"), Logger: n.log, Registry: n.registerer(),
		OnFatal: func(err error) { n.fail(fmt.Errorf("the log store failed: %w", err)) },
	})
	if err != nil {
		return nil, fmt.Errorf("open the log store: %w", err)
	}
	n.onStop("log store", func(context.Context) error { return ls.Close() })
	if err := n.activate(ctx, m, ls); err != nil {
		return nil, err
	}
	srv := logserver.New(logserver.Config{Store: ls, Logger: n.log, OnDataLoss: func(id cluster.LogletID) {
		n.fail(fmt.Errorf("the log store lost durable records of loglet %s: restore the disk, or remove the node", id))
	}})
	n.onStop("log server", func(context.Context) error { srv.Close(); return nil })
	net := nodenet.NewNode(n.self, nil)
	b, err := bifrost.New(bifrost.Config{
		Self: n.self, Net: net, Chains: chains{m.store}, Logger: n.log, Registry: n.registerer(),
		CacheBytes: int(n.cfg.Bifrost.RecordCache),
		Sequencer:  loglet.SequencerConfig{},
	})
	if err != nil {
		return nil, fmt.Errorf("open the logs: %w", err)
	}
	n.onStop("logs", func(context.Context) error { b.Close(); return nil })
	net.Handle(nodenet.LogServer, srv.Handle)
	net.Handle(nodenet.Sequencer, b.Handle)
	return b, nil
}

// openInvokers makes what talks to services.
func (n *Node) openInvokers(schemas invokers.SchemaSource) (*services, *invokers.Pool, error) {
	c := &n.cfg.Worker.Invoker
	hc := h2.DefaultConfig()
	hc.ConnectTimeout, hc.IdleTimeout = c.ConnectTimeout, c.IdleConnectionTimeout
	hc.KeepAliveInterval, hc.KeepAliveTimeout = c.KeepAliveInterval, c.KeepAliveTimeout
	hc.MaxStreamsPerConn = c.StreamsPerConnection
	hc.StreamWindow, hc.ConnWindow = int(c.StreamWindow), int(c.ConnectionWindow)
	client, err := h2.New(hc, n.registerer())
	if err != nil {
		return nil, nil, fmt.Errorf("make the client of services: %w", err)
	}
	n.onStop("client of services", func(context.Context) error { return client.Close() })
	router := transport.Router{HTTP: client}
	if c.AWS != nil {
		l, err := n.openLambda(c)
		if err != nil {
			return nil, nil, err
		}
		router.Lambda = l
	}
	s := &services{transport: router}
	if key := c.IdentityKey.Reveal(); key != "" {
		if s.signer, err = identity.New([]byte(key), c.IdentityExpiration); err != nil {
			return nil, nil, err
		}
		n.log.Info("requests to services are signed", "public_key", s.signer.KeyID())
	}
	ic := invokers.DefaultConfig(n.cfg.ClusterName)
	if l := c.ConcurrentInvocations; l != nil {
		ic.ConcurrencyLimit = *l
	}
	ic.MessageSizeLimit, ic.MessageSizeWarning = uint32(c.MessageSizeLimit), uint32(c.MessageSizeWarning)
	ic.MemoryLimit, ic.InvocationMemoryLimit = int64(c.MemoryLimit), int64(c.PerInvocationMemoryLimit)
	ic.EagerStateLimit, ic.MaxFutureDepth = int(c.EagerState()), c.MaxAwaitedFutureDepth
	ic.AnnounceV7 = n.cfg.Features.ProtocolV7
	ic.AdditionalHeaders = additionalHeaders(ic.AdditionalHeaders, c.AdditionalRequestHeaders)
	s.headers = ic.AdditionalHeaders
	deps := invokers.Deps{Schema: schemas, Transport: s.transport, Logger: n.log, Metrics: n.registerer(), Tracer: n.tracer}
	if s.signer != nil {
		deps.Signer = s.signer
	}
	pool, err := invokers.NewPool(ic, deps)
	if err != nil {
		return nil, nil, fmt.Errorf("make the invoker: %w", err)
	}
	return s, pool, nil
}

// openLambda makes what calls Lambda functions. It calls none before it is asked to.
func (n *Node) openLambda(c *Invoker) (*lambda.Client, error) {
	lc := lambda.DefaultConfig(*c.AWS)
	lc.ExternalID, lc.AllowLatest, lc.MaxConcurrency = c.AWSExternalID, c.LambdaAllowLatest, c.LambdaConcurrency
	lc.CompressAbove = int(c.RequestCompressionThreshold)
	l, err := lambda.New(lc, n.registerer())
	if err != nil {
		return nil, fmt.Errorf("make the client of Lambda functions: %w", err)
	}
	n.onStop("client of Lambda functions", func(context.Context) error { return l.Close() })
	return l, nil
}

// services is how the node reaches the services.
type services struct {
	transport transport.Transport
	signer    *identity.Signer // nil: requests are not signed
	headers   []transport.Field
}

func (s *services) discoverer(log *slog.Logger) (*discovery.Client, error) {
	cfg := discovery.Config{Transport: s.transport, AdditionalHeaders: s.headers, Logger: log}
	if s.signer != nil {
		cfg.Signer = s.signer
	}
	return discovery.New(cfg)
}

// startWorker starts the partitions.
func (n *Node) startWorker(m *membership, b *bifrost.Bifrost, pool *invokers.Pool) *worker.Worker {
	wc := &n.cfg.Worker
	cache := store.NewCache(int64(wc.Storage.BlockCache), m.table.Len(), uint64(wc.Storage.Memtable))
	files := pebble.NewFileCache(max(4, runtime.GOMAXPROCS(0)), min(maxTables, spareFiles(m.table.Len())/tablesShare))
	n.onStop("store caches", func(context.Context) error {
		cache.Unref()
		files.Unref()
		return nil
	})
	pc := partition.Config{
		OpenInvoker:  func(id cluster.PartitionID, h invokers.Host) partition.Invoker { return pool.Open(id, h) },
		Logger:       n.log,
		BatchRecords: wc.MaxCommandBatchSize, BatchBytes: int(wc.MaxCommandBatchBytes),
		CleanupInterval: min(wc.CleanupInterval, maxCleanupInterval),
		TrimDelay:       wc.TrimDelay,
	}
	pc.Listener.Ended = n.traceEnd
	newProcessorMetrics(n.registerer(), &pc.Listener)
	if wc.TimersInMemory != nil {
		pc.TimersInMemory = *wc.TimersInMemory
	}
	w := worker.Start(worker.Config{
		Dir: filepath.Join(n.cfg.DataDir(), "partitions"), Table: m.table, Bifrost: b, Logger: n.log,
		Claim: claimer{m.store, n.self}.claim,
		Store: store.Options{
			Cache: cache, FileCache: files, Logger: n.log, MemTableSize: uint64(wc.Storage.Memtable),
			OnFatal: func(err error) { n.fail(err) },
		},
		Processor: pc,
	})
	n.worker.Store(w)
	n.onStop("partitions", func(context.Context) error { w.Close(); return nil })
	if n.registry != nil {
		n.registry.MustRegister(newPartitionMetrics(w.Statuses, func(p cluster.PartitionID) (cluster.LSN, bool) {
			return b.KnownTail(cluster.LogID(p)) // a partition's log has its number
		}))
	}
	return w
}

// maxCleanupInterval caps the configured interval: expired invocations are found by index here, so looking often costs
// little and frees the disk sooner.
const maxCleanupInterval = 10 * time.Second

// serveAll starts the HTTP servers.
func (n *Node) serveAll(m *membership, schemas *registry.Registry, s *services, w *worker.Worker) error {
	ic := ingress.DefaultConfig()
	ic.RequestSizeLimit, ic.RequestMemory = int64(n.cfg.Ingress.RequestSizeLimit), int64(n.cfg.Ingress.RequestMemoryLimit)
	if l := n.cfg.Ingress.ConcurrentRequests; l != nil {
		ic.ConcurrentRequests = *l
	}
	ic.MaxConcurrentStreams = n.cfg.Ingress.MaxConcurrentStreams
	ic.NoAutoIdempotency = n.cfg.DisableAutoIdempotency
	in, err := ingress.New(ic, ingress.Deps{Partitions: w, Schemas: schemas, Log: n.log, Metrics: n.registerer(), Tracer: n.tracer})
	if err != nil {
		return err
	}
	admin, err := n.adminServer(m, schemas, s, w)
	if err != nil {
		return err
	}
	files := spareFiles(m.table.Len())
	n.serve("node port", files/privateShare, n.listeners.fabric, n.nodeServer(), nil)
	n.serve("admin API", files/privateShare, n.listeners.admin, admin, nil)
	n.serve("ingress", files/ingressShare, n.listeners.ingress, in.Server(), in.Drain)
	return nil
}

// additionalHeaders adds the configured headers to those that are always sent; a configured one wins, whatever its case.
func additionalHeaders(always []transport.Field, configured map[string]string) []transport.Field {
	sent := make(map[string]string, len(configured))
	for name, value := range configured {
		sent[strings.ToLower(name)] = value
	}
	var out []transport.Field
	for _, f := range always {
		if _, replaced := sent[f.Name]; !replaced {
			out = append(out, f)
		}
	}
	for _, name := range sortedKeys(sent) {
		out = append(out, transport.Field{Name: name, Value: sent[name]})
	}
	return out
}

// defaults are the options of services that say nothing of their own.
func (c *Config) defaults() schema.Defaults {
	d := schema.Defaults{
		InactivityTimeout: c.Worker.Invoker.InactivityTimeout, AbortTimeout: c.Worker.Invoker.AbortTimeout,
		JournalRetention: c.Retention.Journal, IdempotencyRetention: c.Retention.Idempotency, WorkflowRetention: c.Retention.Workflow,
		Retry: schema.RetryPolicy{
			InitialInterval: c.RetryPolicy.InitialInterval, Factor: c.RetryPolicy.ExponentiationFactor,
			MaxInterval: c.RetryPolicy.MaxInterval, MaxAttempts: uint64(c.RetryPolicy.MaxAttempts),
		},
	}
	if c.RetryPolicy.OnMaxAttempts == OnMaxAttemptsKill {
		d.Retry.OnMaxAttempts = schema.Kill
	} else {
		d.Retry.OnMaxAttempts = schema.Pause
	}
	d.MaxJournalRetention, d.MaxIdempotencyRetention, d.MaxWorkflowRetention = c.Retention.MaxJournal, c.Retention.MaxIdempotency, c.Retention.MaxWorkflow
	if m := c.MaxRetryAttempts; m != nil {
		d.MaxAttempts = uint64(*m)
	}
	return d
}
