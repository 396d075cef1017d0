package partition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/bifrost"
	"perdure/nodes/logserver"
	"perdure/nodes/logstore"
	"perdure/nodes/partition/store"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
	"perdure/nodes/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a node with a log and processors of a number of partitions, as the worker would run them.
type world struct {
	t      testing.TB
	dir    string
	gen    cluster.Generation
	chains *bifrost.MemoryChains
	epochs []cluster.Epoch
	script script

	bifrost *bifrost.Bifrost
	close   []func()
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	procs   []atomic.Pointer[Processor]
	change  func(*Config)
}

// script is what the services do: the effects of an attempt, given its journal.
type script func(j *invokers.Journal) []*invocationpb.Effect

// newWorld is stopped at the end of the test if it still runs then.
func newWorld(t testing.TB, partitions int, s script) *world {
	w := &world{t: t, dir: t.TempDir(), chains: bifrost.NewMemoryChains(), epochs: make([]cluster.Epoch, partitions), script: s}
	t.Cleanup(func() {
		if w.close != nil {
			w.stop()
		}
	})
	return w
}

func (w *world) start() {
	w.t.Helper()
	w.gen++
	self := cluster.GenNodeID{ID: 1, Generation: w.gen}
	logger := slog.New(slog.DiscardHandler)
	ls, err := logstore.Open(logstore.Config{Dir: filepath.Join(w.dir, "log"), FS: vfs.Default, Logger: logger})
	if err != nil {
		w.t.Fatal(err)
	}
	srv := logserver.New(logserver.Config{Store: ls, Logger: logger})
	net := transport.NewNode(self, nil)
	if w.bifrost, err = bifrost.New(bifrost.Config{Self: self, Net: net, Chains: w.chains, Logger: logger}); err != nil {
		w.t.Fatal(err)
	}
	net.Handle(transport.LogServer, srv.Handle)
	net.Handle(transport.Sequencer, w.bifrost.Handle)
	w.close = []func(){func() { ls.Close() }, srv.Close, w.bifrost.Close}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.procs = make([]atomic.Pointer[Processor], len(w.epochs))
	leading := make(chan struct{}, len(w.epochs))
	for i := range w.epochs {
		w.epochs[i]++
		id := cluster.PartitionID(i)
		if err := w.bifrost.EnsureLog(ctx, cluster.LogID(i)); err != nil {
			w.t.Fatal(err)
		}
		st, err := store.Open(store.Options{Dir: filepath.Join(w.dir, fmt.Sprint("p", i)), Partition: id, Range: w.keys(i), Logger: logger})
		if err != nil {
			w.t.Fatal(err)
		}
		cfg := Config{
			Partition: id, Range: w.keys(i), Log: cluster.LogID(i), Bifrost: w.bifrost, Lookup: w.lookup, Peers: w, Logger: logger,
			OpenInvoker:  func(_ cluster.PartitionID, h invokers.Host) Invoker { return newScripted(w.script, h) },
			Listener:     Listener{Leading: func(cluster.PartitionID, cluster.Epoch) { leading <- struct{}{} }},
			TickInterval: 20 * time.Millisecond,
		}
		if w.change != nil {
			w.change(&cfg)
		}
		p, err := New(cfg, st)
		if err != nil {
			w.t.Fatal(err)
		}
		w.procs[i].Store(p)
		w.close = append(w.close, func() {
			if err := st.Close(); err != nil {
				w.t.Errorf("close store: %v", err)
			}
		})
		epoch := w.epochs[i]
		w.wg.Go(func() {
			if err := p.RunLeader(ctx, Claim{Epoch: epoch, Node: self}); err != nil && !errors.Is(err, context.Canceled) {
				w.t.Errorf("partition %d: %v", i, err)
			}
		})
	}
	for range w.epochs {
		select {
		case <-leading:
		case <-time.After(time.Minute):
			w.t.Fatal("not all partitions lead within a minute")
		}
	}
}

func (w *world) stop() {
	w.cancel()
	w.wg.Wait()
	for i := len(w.close) - 1; i >= 0; i-- {
		w.close[i]()
	}
	w.close = nil
}

func (w *world) keys(i int) cluster.KeyRange {
	size := ^uint64(0)/uint64(len(w.epochs)) + 1
	r := cluster.KeyRange{Start: cluster.PartitionKey(size * uint64(i)), End: cluster.PartitionKey(size*uint64(i+1) - 1)}
	if i == len(w.epochs)-1 {
		r.End = ^cluster.PartitionKey(0)
	}
	return r
}

func (w *world) lookup(k cluster.PartitionKey) cluster.PartitionID {
	for i := range w.epochs {
		if w.keys(i).Contains(k) {
			return cluster.PartitionID(i)
		}
	}
	panic("the ranges have a hole")
}

// Ingest implements Peers.
func (w *world) Ingest(d cluster.PartitionID, from Origin, cmds []*recordpb.Command, done func(error)) error {
	return w.procs[d].Load().Ingest(from, cmds, done)
}

func (w *world) do(ctx context.Context, key cluster.PartitionKey, r *recordpb.Request) (*recordpb.Reply, error) {
	return w.procs[w.lookup(key)].Load().Do(ctx, r)
}

// scripted is an invoker whose services are a script, without any transport.
type scripted struct {
	script script
	host   invokers.Host
	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
	// incarnations are those that were started.
	incarnations map[ident.InvocationID]uint64
}

func newScripted(s script, h invokers.Host) *scripted {
	ctx, cancel := context.WithCancel(context.Background())
	return &scripted{script: s, host: h, ctx: ctx, cancel: cancel, incarnations: map[ident.InvocationID]uint64{}}
}

func (s *scripted) Invoke(id ident.InvocationID, incarnation uint64, service string, pinned ident.DeploymentID, fresh *invokers.Journal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.incarnations[id] = incarnation
	s.wg.Go(func() {
		j := fresh
		if j == nil {
			var err error
			if j, err = s.host.ReadJournal(id, func(*invocationpb.Target, ident.DeploymentID) int { return 1 << 20 }, nil); err != nil {
				return // it is not running any more
			}
		}
		if service != j.Target.GetService() || pinned != j.Deployment {
			panic(fmt.Sprintf("%s of %s on %s was to be invoked as one of %q on %s", id, j.Target.GetService(), j.Deployment, service, pinned))
		}
		if effects := s.script(j); len(effects) > 0 {
			_ = s.host.Propose(s.ctx, id, incarnation, 1, effects) // fails when leadership is lost
		}
	})
}

func (s *scripted) Notify(ident.InvocationID, uint64, uint32, uint16, []byte) {}
func (s *scripted) Applied(ident.InvocationID, uint64, uint64)                {}
func (s *scripted) Abort(ident.InvocationID)                                  {}
func (s *scripted) Pause(ident.InvocationID)                                  {}
func (s *scripted) RetryNow(ident.InvocationID)                               {}

// Status has every invocation that was started, without saying how far it is.
func (s *scripted) Status(fn func(invokers.Status) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, incarnation := range s.incarnations {
		if !fn(invokers.Status{ID: id, Incarnation: incarnation, InFlight: true}) {
			return
		}
	}
}

func (s *scripted) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

type vtMessage interface{ MarshalVT() ([]byte, error) }

func commandEffect(typ uint16, m vtMessage) *invocationpb.Effect {
	raw, err := m.MarshalVT()
	if err != nil {
		panic(err)
	}
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Command_{Command: &invocationpb.Effect_Command{Type: uint32(typ), Raw: raw}}}
}

func endEffect() *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_End_{End: &invocationpb.Effect_End{}}}
}

func pinnedEffect() *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Pinned{Pinned: &invocationpb.Effect_PinnedDeployment{DeploymentId: make([]byte, 16), ProtocolVersion: 6}}}
}

// output is the effects of a handler that just returns.
func output(value []byte) []*invocationpb.Effect {
	return []*invocationpb.Effect{
		pinnedEffect(),
		commandEffect(protocol.TypeOutput, &protocolpb.OutputCommand{Result: &protocolpb.OutputCommand_Value{Value: &protocolpb.Value{Content: value}}}),
		endEffect(),
	}
}

func echo(j *invokers.Journal) []*invocationpb.Effect {
	var in protocolpb.InputCommand
	if err := in.UnmarshalVT(j.Entries[0].Raw); err != nil {
		panic(err)
	}
	return output(in.Value.Content)
}

var requests atomic.Uint64

func newRequest() (r requestID) {
	n := requests.Add(1)
	for i := range 8 {
		r[i] = byte(n >> (8 * i))
	}
	return r
}

// call makes a request for a plain service, whose result is kept for longer than any test takes.
func call(argument string, wait bool) (*recordpb.Request, cluster.PartitionKey) {
	rid := newRequest()
	id := ident.Invocation(ident.Target{Service: "Svc", Handler: "h"}, ident.Random{ULID: rid, Bucket: requests.Load()})
	ik := fmt.Sprint(requests.Load())
	return &recordpb.Request{Id: rid[:], Kind: &recordpb.Request_Invoke_{Invoke: &recordpb.Request_Invoke{WaitOutput: wait, Invocation: &invocationpb.Invocation{
		Id: id[:], Target: &invocationpb.Target{Service: "Svc", Handler: "h", ServiceType: uint32(schema.Service), HandlerType: uint32(schema.Shared)},
		Argument: []byte(argument), Source: &invocationpb.Source{}, IdempotencyKey: &ik, CompletionRetentionMs: 1 << 40, JournalRetentionMs: 1 << 40,
	}}}}, id.PartitionKey()
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestCall(t *testing.T) {
	w := newWorld(t, 4, echo)
	w.start()
	defer w.stop()
	for i := range 50 {
		req, key := call(fmt.Sprint("hello ", i), true)
		r, err := w.do(within(t), key, req)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(r.Result.GetSuccess()); got != fmt.Sprint("hello ", i) {
			t.Fatalf("call %d returned %q: %v", i, got, r)
		}
	}
}

// What was accepted before a restart is finished after it, by whoever leads then.
func TestAcceptedSurvivesRestart(t *testing.T) {
	gate := make(chan struct{})
	w := newWorld(t, 2, func(j *invokers.Journal) []*invocationpb.Effect {
		select {
		case <-gate:
			return echo(j)
		default:
			return nil
		}
	})
	w.start()
	var ids [][]byte
	for i := range 40 {
		req, key := call(fmt.Sprint(i), false)
		r, err := w.do(within(t), key, req)
		if err != nil || r.Status != recordpb.Reply_ACCEPTED {
			t.Fatalf("send: %v, %v", r, err)
		}
		ids = append(ids, req.GetInvoke().Invocation.Id)
	}
	w.stop()
	close(gate)
	w.start()
	defer w.stop()
	for i, raw := range ids {
		id, _ := ident.InvocationIDFromBytes(raw)
		rid := newRequest()
		r, err := w.do(within(t), id.PartitionKey(), &recordpb.Request{Id: rid[:], Kind: &recordpb.Request_Attach{Attach: &recordpb.Request_ById{InvocationId: raw}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(r.Result.GetSuccess()); got != fmt.Sprint(i) {
			t.Fatalf("invocation %d ended with %q: %v", i, got, r)
		}
	}
}

// What is larger than any batch, buffer or memtable on its way can be appended, applied and replayed all the same.
func TestLargePayload(t *testing.T) {
	w := newWorld(t, 1, echo)
	w.start()
	large := strings.Repeat("0123456789abcdef", 12<<20/16)
	req, key := call(large, true)
	same := func(r *recordpb.Reply, err error) {
		t.Helper()
		if err != nil || string(r.Result.GetSuccess()) != large {
			t.Fatalf("%d bytes, %v, want %d bytes", len(r.GetResult().GetSuccess()), err, len(large))
		}
	}
	same(w.do(within(t), key, req))
	w.stop()
	w.start()
	defer w.stop()
	rid := newRequest()
	same(w.do(within(t), key, &recordpb.Request{Id: rid[:], Kind: &recordpb.Request_GetOutput{GetOutput: &recordpb.Request_ById{InvocationId: req.GetInvoke().Invocation.Id}}}))
}

// Requests that wait when the leader stops get an unknown outcome, later ones a safe refusal.
func TestStopAnswersWaiters(t *testing.T) {
	started := make(chan struct{})
	w := newWorld(t, 1, func(*invokers.Journal) []*invocationpb.Effect { close(started); return nil })
	w.start()
	result := make(chan error, 1)
	req, key := call("x", true)
	go func() {
		_, err := w.do(within(t), key, req)
		result <- err
	}()
	<-started
	w.stop()
	err := <-result
	var o interface{ Safe() bool }
	if !errors.As(err, &o) || o.Safe() {
		t.Errorf("waiter got %v, want an unknown outcome", err)
	}
	if _, err := w.do(within(t), key, req); !errors.Is(err, ErrNotLeader) {
		t.Errorf("request after the stop: %v, want ErrNotLeader", err)
	}
}

// A sleep fires once its time has come and not before, also when the timers do not all fit in memory.
func TestTimers(t *testing.T) {
	const each, most = 20, 3 // sleepers of 1, 2, ... hours
	began := time.Now().Round(time.Millisecond)
	var passed atomic.Int64 // hours, by the clock of the leaders
	w := newWorld(t, 2, func(j *invokers.Journal) []*invocationpb.Effect {
		var in protocolpb.InputCommand
		if err := in.UnmarshalVT(j.Entries[0].Raw); err != nil {
			panic(err)
		}
		hours := int64(in.Value.Content[0])
		if len(j.Entries) > 2 { // input, sleep, completion
			if p := passed.Load(); p < hours {
				t.Errorf("a sleep of %d hours was over after %d", hours, p)
			}
			return output([]byte("woke"))
		}
		return []*invocationpb.Effect{
			pinnedEffect(),
			commandEffect(protocol.TypeSleep, &protocolpb.SleepCommand{WakeUpTime: uint64(began.Add(time.Duration(hours) * time.Hour).UnixMilli()), ResultCompletionId: 1}),
			{Kind: &invocationpb.Effect_Suspended_{Suspended: &invocationpb.Effect_Suspended{Awaiting: &invocationpb.Future{Completions: []uint32{1}, Signals: []uint32{1}}}}},
		}
	})
	w.change = func(c *Config) {
		c.TimersInMemory = 3
		c.Now = func() time.Time { return began.Add(time.Duration(passed.Load()) * time.Hour) }
	}
	w.start()
	defer w.stop()
	ctx := within(t)
	var asleep [most + 1]sync.WaitGroup
	sleep := func(hours int) {
		asleep[hours].Go(func() {
			req, key := call(string(rune(hours)), true)
			if r, err := w.do(ctx, key, req); err != nil || string(r.Result.GetSuccess()) != "woke" {
				t.Errorf("sleeper of %d hours: %v, %v", hours, r, err)
			}
		})
	}
	for range each {
		for hours := 1; hours <= most; hours++ {
			sleep(hours)
		}
	}
	for w.suspended(ctx) < each*most {
		<-time.After(time.Millisecond)
	}
	for hours := 1; hours <= most; hours++ {
		passed.Store(int64(hours))
		for range each / 4 { // set while others fire: among those in memory and beyond them
			sleep(hours)
			sleep(min(hours+1, most))
		}
		asleep[hours].Wait()
	}
}

// suspended is how many invocations are suspended.
func (w *world) suspended(ctx context.Context) (n int) {
	w.t.Helper()
	for i := range w.procs {
		v, done, err := w.procs[i].Load().Inspect(ctx)
		if err != nil {
			w.t.Fatal(err)
		}
		s, err := v.Summary()
		done()
		if err != nil {
			w.t.Fatal(err)
		}
		n += s.Statuses[storepb.Invocation_SUSPENDED]
	}
	return n
}

// Results that are no longer retained are purged without anybody asking.
func TestRetentionEnds(t *testing.T) {
	w := newWorld(t, 1, echo)
	w.change = func(c *Config) { c.CleanupInterval = 20 * time.Millisecond }
	w.start()
	defer w.stop()
	req, key := call("x", true)
	req.GetInvoke().Invocation.CompletionRetentionMs, req.GetInvoke().Invocation.JournalRetentionMs = 1000, 1000
	if _, err := w.do(within(t), key, req); err != nil {
		t.Fatal(err)
	}
	raw := req.GetInvoke().Invocation.Id
	deadline := time.Now().Add(time.Minute)
	for {
		rid := newRequest()
		r, err := w.do(within(t), key, &recordpb.Request{Id: rid[:], Kind: &recordpb.Request_GetOutput{GetOutput: &recordpb.Request_ById{InvocationId: raw}}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Status == recordpb.Reply_NOT_FOUND {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there after a minute although retained for 1 s: %v", r)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func BenchmarkCall(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			w := newWorld(b, 24, echo)
			w.start()
			defer w.stop()
			ctx := context.Background()
			b.ReportAllocs()
			b.ResetTimer()
			var n atomic.Int64
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					for n.Add(1) <= int64(b.N) {
						req, key := call("0123456789", true)
						if _, err := w.do(ctx, key, req); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
