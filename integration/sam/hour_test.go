package sam

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/integration/lambdaemu"
	"perdure/invokers"
	"perdure/invokers/discovery"
	"perdure/invokers/invocationpb"
	"perdure/invokers/lambda"
	"perdure/invokers/transport"
	"perdure/nodes/bifrost"
	"perdure/nodes/logserver"
	"perdure/nodes/logstore"
	"perdure/nodes/partition"
	"perdure/nodes/partition/store"
	"perdure/nodes/record/recordpb"
	nodenet "perdure/nodes/transport"
)

// clock stands still at its start unless a test moves it, however long the test takes. It counts how often it was looked at.
type clock struct {
	start time.Time
	ahead atomic.Int64
	looks atomic.Int64
}

func (c *clock) now() time.Time {
	c.looks.Add(1)
	return c.start.Add(time.Duration(c.ahead.Load()))
}

// snapshot is a schema that does not change.
type snapshot struct{ *schema.Schema }

func (s snapshot) Current() *schema.Schema { return s.Schema }

// leader is one partition with its log, store and invoker in this process, under a clock of its own, calling functions of
// the emulator.
type leader struct {
	clock   clock
	schema  snapshot
	process *partition.Processor
}

// Ingest implements partition.Peers.
func (l *leader) Ingest(_ cluster.PartitionID, from partition.Origin, cmds []*recordpb.Command, done func(error)) error {
	return l.process.Ingest(from, cmds, done)
}

// lead starts a partition that serves the function at arn.
func lead(t *testing.T, arn string) *leader {
	t.Helper()
	l := &leader{clock: clock{start: time.Now()}}
	log := slog.New(slog.DiscardHandler)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	aws, err := config.LoadDefaultConfig(t.Context()) // the variables point at the emulator
	must(err)
	lc := lambda.DefaultConfig(aws)
	lc.ExternalID = externalID
	functions, err := lambda.New(lc, nil)
	must(err)
	router := transport.Router{Lambda: functions}
	disc, err := discovery.New(discovery.Config{Transport: router})
	must(err)
	address := schema.Address{Lambda: &schema.LambdaAddress{ARN: arn, AssumeRoleARN: invokeRole}}
	found, err := disc.Discover(t.Context(), address, nil)
	must(err)
	defaults := schema.Defaults{InactivityTimeout: time.Minute, AbortTimeout: time.Minute,
		Retry: schema.RetryPolicy{InitialInterval: 100 * time.Millisecond, Factor: 2, MaxInterval: time.Second}}
	change, err := schema.New(1, defaults, nil).Register(schema.Registration{Address: address}, *found, 1, ident.DeploymentID{1})
	must(err)
	l.schema = snapshot{change.Schema}
	pool, err := invokers.NewPool(invokers.DefaultConfig("localcluster"), invokers.Deps{Schema: l.schema, Transport: router, Logger: log})
	must(err)

	dir := t.TempDir()
	self := cluster.GenNodeID{ID: 1, Generation: 1}
	ls, err := logstore.Open(logstore.Config{Dir: filepath.Join(dir, "log"), Logger: log})
	must(err)
	srv := logserver.New(logserver.Config{Store: ls, Logger: log})
	net := nodenet.NewNode(self, nil)
	b, err := bifrost.New(bifrost.Config{Self: self, Net: net, Chains: bifrost.NewMemoryChains(), Logger: log})
	must(err)
	net.Handle(nodenet.LogServer, srv.Handle)
	net.Handle(nodenet.Sequencer, b.Handle)
	must(b.EnsureLog(t.Context(), 0))
	keys := cluster.KeyRange{End: ^cluster.PartitionKey(0)}
	st, err := store.Open(store.Options{Dir: filepath.Join(dir, "p"), Range: keys, Logger: log})
	must(err)
	leading := make(chan struct{})
	l.process, err = partition.New(partition.Config{
		Range: keys, Bifrost: b, Lookup: func(cluster.PartitionKey) cluster.PartitionID { return 0 }, Peers: l, Logger: log, Now: l.clock.now,
		OpenInvoker:  func(id cluster.PartitionID, h invokers.Host) partition.Invoker { return pool.Open(id, h) },
		Listener:     partition.Listener{Leading: func(cluster.PartitionID, cluster.Epoch) { close(leading) }},
		TickInterval: 20 * time.Millisecond,
	}, st)
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.process.RunLeader(ctx, partition.Claim{Epoch: 1, Node: self}); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("lead: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		b.Close()
		srv.Close()
		if err := errors.Join(st.Close(), ls.Close(), functions.Close()); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-leading:
	case <-time.After(patience):
		t.Fatal("the partition does not lead")
	}
	return l
}

// run starts a workflow and returns a channel with its result.
func (l *leader) run(t *testing.T, service, key string, input any) <-chan []byte {
	t.Helper()
	argument, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	h, err := l.schema.Handler(service, "Run")
	if err != nil {
		t.Fatal(err)
	}
	id := ident.Invocation(ident.Target{Service: service, Handler: "Run", Key: key, Keyed: true, WorkflowRun: true}, ident.Random{})
	req := &recordpb.Request{Id: make([]byte, 16), Kind: &recordpb.Request_Invoke_{Invoke: &recordpb.Request_Invoke{WaitOutput: true,
		Invocation: &invocationpb.Invocation{Id: id[:], Argument: argument, Source: &invocationpb.Source{},
			Target:                &invocationpb.Target{Service: service, Handler: "Run", Key: key, ServiceType: uint32(schema.Workflow), HandlerType: uint32(h.Type)},
			CompletionRetentionMs: 1 << 40, JournalRetentionMs: 1 << 40}}}}
	result := make(chan []byte, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	var wg sync.WaitGroup
	wg.Go(func() {
		reply, err := l.process.Do(ctx, req)
		if err != nil {
			t.Errorf("run %s: %v", key, err)
		}
		result <- reply.GetResult().GetSuccess()
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return result
}

// TestHourOfSleep: a workflow that sleeps an hour does not call its function in that hour, at whatever time one looks, and
// needs four calls for run, sleep and run. The hour passes on the partition's clock.
func TestHourOfSleep(t *testing.T) {
	t.Parallel()
	const function = "own-hour"
	l := lead(t, deploy(t, lambdaemu.Function{}, function, sample(t, "reminder")))
	result := l.run(t, "Reminder", "tea", map[string]any{"text": "tea", "afterSeconds": 3600})

	asleep := func() bool {
		n := len(invokes(function))
		return n >= 2 && emulator.Stats(prefix+function).Running == 0
	}
	eventually(t, asleep, func() string { return "the workflow does not get to its sleep" })
	for _, at := range []time.Duration{0, time.Minute, 30 * time.Minute, time.Hour - time.Second} {
		l.clock.ahead.Store(int64(at))
		// The partition must have had the chance to wake it up: housekeeping looks at the clock at each tick.
		looks := l.clock.looks.Load()
		eventually(t, func() bool { return l.clock.looks.Load() > looks+20 }, func() string { return "the partition does not look at its clock" })
		if n := len(invokes(function)); n != 2 {
			t.Fatalf("%d calls after %s, want 2: the function was called during the sleep", n, at)
		}
	}
	select {
	case r := <-result:
		t.Fatalf("the workflow ended early: %s", r)
	default:
	}
	l.clock.ahead.Store(int64(time.Since(l.clock.start) + time.Hour)) // the function counts the hour from its own time
	select {
	case r := <-result:
		var got struct{ Text string }
		if err := json.Unmarshal(r, &got); err != nil || got.Text != "tea" {
			t.Errorf("got %s, %v", r, err)
		}
	case <-time.After(patience):
		t.Fatal("the workflow did not wake up after an hour")
	}
	eventually(t, func() bool { return len(invokes(function)) >= 4 }, func() string { return "the last call is missing" })
	if n := len(invokes(function)); n != 4 {
		t.Errorf("%d calls for run, sleep and run, want 4", n)
	}
}
