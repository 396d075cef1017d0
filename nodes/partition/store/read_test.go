package store

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/ident"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

func testID(n byte) (id ident.InvocationID) {
	id[0], id[23] = n, n
	return id
}

type sized interface{ MarshalVT() ([]byte, error) }

// put commits rows.
func put(t testing.TB, s *Store, rows ...any) {
	t.Helper()
	txn := s.NewTxn()
	for i := 0; i < len(rows); i += 2 {
		var value []byte
		switch v := rows[i+1].(type) {
		case []byte:
			value = v
		case sized:
			var err error
			if value, err = v.MarshalVT(); err != nil {
				t.Fatal(err)
			}
		}
		if err := txn.Set(rows[i].([]byte), value); err != nil {
			t.Fatal(err)
		}
	}
	if err := txn.Commit(); err != nil {
		t.Fatal(err)
	}
}

func journalEntry(typ uint16, raw string) []byte {
	return keyspace.AppendEntry(nil, &keyspace.Entry{Type: typ, AppendedAtMs: 5, Raw: []byte(raw)})
}

// upTo is the same limit for every target.
func upTo(n int) invokers.EagerLimit {
	return func(*invocationpb.Target, ident.DeploymentID) int { return n }
}

func TestReadJournal(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	id := testID(1)
	target := &invocationpb.Target{Service: "Counter", Handler: "add", Key: "k", ServiceType: 2, HandlerType: 2}
	inv := &storepb.Invocation{
		Status: storepb.Invocation_INVOKED, Incarnation: 9, Target: target, DeploymentId: []byte("deployment-00001"), ProtocolVersion: 6,
		Entries: 2, CreatedAtMs: 3, ModifiedAtMs: 4, TraceParent: "tp", TraceState: "ts", LimitKey: "l",
	}
	o := keyspace.Object{Partition: id.PartitionKey(), Service: "Counter", Key: "k"}
	next := o
	next.Key = "l"
	put(t, s,
		keyspace.AppendInvocation(nil, &id), inv,
		keyspace.AppendJournal(nil, &id, 0), journalEntry(0x400, "input"),
		keyspace.AppendJournal(nil, &id, 1), journalEntry(0x800c, "sleep"),
		keyspace.AppendState(nil, &o, []byte("a")), []byte("12345"),
		keyspace.AppendState(nil, &o, []byte("b")), []byte(""),
		keyspace.AppendState(nil, &o, []byte("c")), []byte("6"),
		keyspace.AppendState(nil, &next, []byte("z")), []byte("other"),
	)
	for _, c := range []struct {
		limit   int
		state   string
		partial bool
	}{{0, "", true}, {5, "", true}, {6, "a=12345", true}, {8, "a=12345 b=", true}, {9, "a=12345 b= c=6", false}, {1 << 20, "a=12345 b= c=6", false}} {
		j, err := s.ReadJournal(id, upTo(c.limit), nil)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for i, e := range j.State {
			if i > 0 {
				got += " "
			}
			got += fmt.Sprintf("%s=%s", e.Key, e.Value)
		}
		if got != c.state || j.PartialState != c.partial {
			t.Errorf("limit %d: %q, partial %v; want %q, %v", c.limit, got, j.PartialState, c.state, c.partial)
		}
		if j.Incarnation != 9 || string(j.Deployment[:]) != "deployment-00001" || j.ProtocolVersion != 6 || j.CreatedAtMs != 3 || j.ModifiedAtMs != 4 ||
			j.Target.Key != "k" || len(j.Entries) != 2 || string(j.Entries[0].Raw) != "input" || j.Entries[1].Type != 0x800c || j.TraceParent != "tp" || j.LimitKey != "l" {
			t.Fatalf("%+v", j)
		}
	}
	for _, c := range []struct {
		limit, memory int // 5 + 5 bytes for the journal, 6 for the state
		ok            bool
	}{{0, 9, false}, {0, 10, true}, {6, 15, false}, {6, 16, true}} {
		left := c.memory
		reserve := func(n int) bool { left -= n; return left >= 0 }
		if j, err := s.ReadJournal(id, upTo(c.limit), reserve); (err == nil) != c.ok || !c.ok && !errors.Is(err, invokers.ErrNoMemory) {
			t.Errorf("with memory for %d bytes: %+v, %v", c.memory, j, err)
		}
	}
	if _, err := s.ReadJournal(testID(2), nil, nil); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	inv.Status = storepb.Invocation_SUSPENDED
	put(t, s, keyspace.AppendInvocation(nil, &id), inv)
	if _, err := s.ReadJournal(id, nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Fatal(err)
	}
	inv.Status, inv.Entries = storepb.Invocation_INVOKED, 3
	put(t, s, keyspace.AppendInvocation(nil, &id), inv)
	if _, err := s.ReadJournal(id, nil, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	put(t, s, keyspace.AppendInvocation(nil, &id), []byte{0xff})
	if _, err := s.ReadJournal(id, nil, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

func TestStateOfAServiceIsPartialAndEmpty(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	id := testID(1)
	put(t, s,
		keyspace.AppendInvocation(nil, &id), &storepb.Invocation{Status: storepb.Invocation_INVOKED, Target: &invocationpb.Target{Service: "A", ServiceType: 1}, Entries: 1},
		keyspace.AppendJournal(nil, &id, 0), journalEntry(0x400, "input"),
	)
	if j, err := s.ReadJournal(id, upTo(1<<20), nil); err != nil || !j.PartialState || len(j.State) != 0 {
		t.Fatalf("%+v, %v", j, err)
	}
}

func TestOutput(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	running, inJournal, kept, failed, damaged := testID(1), testID(2), testID(3), testID(4), testID(5)
	out, err := (&protocolpb.OutputCommand{Result: &protocolpb.OutputCommand_Value{Value: &protocolpb.Value{Content: []byte("r")}}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	target := &invocationpb.Target{Service: "A"}
	completed := func() *storepb.Invocation {
		return &storepb.Invocation{Status: storepb.Invocation_COMPLETED, Target: target, CompletedAtMs: 10, CompletionRetentionMs: 5}
	}
	a, b, c, d := completed(), completed(), completed(), completed()
	a.Output, b.OutputKept, c.Failure, d.Output = 2, true, &invocationpb.Failure{Code: 409, Message: "killed"}, 2
	put(t, s,
		keyspace.AppendInvocation(nil, &running), &storepb.Invocation{Status: storepb.Invocation_PAUSED, Target: target},
		keyspace.AppendInvocation(nil, &inJournal), a,
		keyspace.AppendJournal(nil, &inJournal, 1), keyspace.AppendEntry(nil, &keyspace.Entry{Type: 0x401, Raw: out}),
		keyspace.AppendInvocation(nil, &kept), b,
		keyspace.AppendOutput(nil, &kept), &storepb.Output{Value: []byte("k")},
		keyspace.AppendInvocation(nil, &failed), c,
		keyspace.AppendInvocation(nil, &damaged), d,
	)
	for _, c := range []struct {
		id    ident.InvocationID
		state OutputState
		want  string
	}{{testID(9), OutputMissing, ""}, {running, OutputPending, ""}, {inJournal, OutputReady, "r"}, {kept, OutputReady, "k"}} {
		o, err := s.Output(c.id)
		if err != nil || o.State != c.state || string(o.Result.GetSuccess()) != c.want {
			t.Errorf("%v: %+v, %v", c, o, err)
		}
		if c.state == OutputReady && (o.ExpiresAtMs != 15 || o.Target.Service != "A") {
			t.Errorf("%v: %+v", c, o)
		}
	}
	if o, err := s.Output(failed); err != nil || o.Result.GetFailure().GetCode() != 409 {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := s.Output(damaged); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func TestTimersAreReadInPages(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	var want []TimerKey
	for i := range uint64(10) {
		k := TimerKey{FireAtMs: 100 + i/3, Kind: keyspace.TimerSleep, ID: testID(byte(i)), CompletionID: uint32(i)}
		want = append(want, k)
		put(t, s, keyspace.AppendTimer(nil, &k), []byte{})
	}
	var got []TimerKey
	after := TimerKey{}
	for {
		page, err := s.Timers(after, 3)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, page...)
		if len(page) < 3 {
			break
		}
		after = page[2]
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%v, want %v", got, want)
	}
}

func TestExpired(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	for _, e := range []Expiry{{AtMs: 5, ID: testID(1)}, {AtMs: 6, ID: testID(2), JournalOnly: true}, {AtMs: 7, ID: testID(3)}} {
		put(t, s, keyspace.AppendExpiry(nil, &e), []byte{})
	}
	for _, c := range []struct {
		now  uint64
		max  int
		want int
	}{{4, 10, 0}, {5, 10, 1}, {6, 10, 2}, {6, 1, 1}, {1<<64 - 1, 10, 3}} {
		if es, err := s.Expired(c.now, c.max); err != nil || len(es) != c.want {
			t.Errorf("now %d: %v, %v", c.now, es, err)
		}
	}
}

func TestOutboxAndItsHead(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	if h, err := s.OutboxHead(); err != nil || h != 1 {
		t.Fatalf("head of a new outbox %d, %v", h, err)
	}
	for i := uint64(4); i < 9; i++ {
		put(t, s, keyspace.AppendOutbox(nil, i), &recordpb.Command{PartitionKey: i})
	}
	put(t, s, keyspace.AppendMeta(nil, keyspace.MetaCounters), &storepb.Counters{OutboxHead: 4, OutboxNext: 9})
	if h, err := s.OutboxHead(); err != nil || h != 4 {
		t.Fatalf("head %d, %v", h, err)
	}
	row := (&recordpb.Command{PartitionKey: 5}).SizeVT()
	for _, c := range []struct {
		from         uint64
		limit, bytes int
		want         int
		more         bool
	}{{5, 3, 1 << 20, 3, true}, {5, 10, 1 << 20, 4, false}, {5, 10, 0, 1, true}, {5, 10, row + 1, 2, true}, {9, 3, 1 << 20, 0, false}} {
		ms, more, err := s.Outbox(c.from, c.limit, c.bytes)
		if err != nil || len(ms) != c.want || more != c.more {
			t.Fatalf("%+v: %v, %v, %v", c, ms, more, err)
		}
		for i, m := range ms {
			if m.Index != c.from+uint64(i) || m.Command.PartitionKey != m.Index || m.Bytes != row {
				t.Errorf("%+v: %+v", c, m)
			}
		}
	}
	put(t, s, keyspace.AppendOutbox(nil, 6), []byte{0xff})
	if _, _, err := s.Outbox(5, 3, 1<<20); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

func TestScans(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	a, b := testID(1), testID(2)
	o := keyspace.Object{Partition: 1, Service: "Counter", Key: "k"}
	put(t, s,
		keyspace.AppendInvocation(nil, &a), &storepb.Invocation{Status: storepb.Invocation_INVOKED, Incarnation: 7},
		keyspace.AppendInvocation(nil, &b), &storepb.Invocation{Status: storepb.Invocation_PAUSED},
		keyspace.AppendJournal(nil, &a, 0), journalEntry(0x400, "a0"),
		keyspace.AppendJournal(nil, &b, 0), journalEntry(0x400, "b0"),
		keyspace.AppendJournal(nil, &b, 1), journalEntry(0x401, "b1"),
		keyspace.AppendEvent(nil, &a, 0), &storepb.Event{AfterEntry: 1},
		keyspace.AppendEvent(nil, &b, 3), &storepb.Event{AfterEntry: 2},
		keyspace.AppendState(nil, &o, []byte("x")), []byte("v"),
	)
	var got []string
	note := func(format string, args ...any) error {
		got = append(got, fmt.Sprintf(format, args...))
		return nil
	}
	err := errors.Join(
		s.Invocations(func(id ident.InvocationID, inv *storepb.Invocation) error { return note("i%d %s", id[0], inv.Status) }),
		s.Invoked(func(id ident.InvocationID, inv *storepb.Invocation) error {
			return note("run%d %d", id[0], inv.Incarnation)
		}),
		s.Entries(b, func(e JournalEntry) error { return note("j%d %s", e.Index, e.Raw) }),
		s.Events(b, func(id ident.InvocationID, n uint32, e *storepb.Event) error { return note("e%d.%d", id[0], n) }),
		s.Events(ident.InvocationID{}, func(id ident.InvocationID, n uint32, e *storepb.Event) error { return note("E%d.%d", id[0], n) }),
		s.State(o, func(k, v []byte) error { return note("s %s=%s", k, v) }),
	)
	want := "[i1 INVOKED i2 PAUSED run1 7 j0 b0 j1 b1 e2.3 E1.0 E2.3 s x=v]"
	if err != nil || fmt.Sprint(got) != want {
		t.Fatalf("%v, want %s (%v)", got, want, err)
	}
	if inv, err := s.Invocation(a); err != nil || inv.Incarnation != 7 {
		t.Fatalf("%v, %v", inv, err)
	}
	if inv, err := s.Invocation(testID(9)); err != nil || inv != nil {
		t.Fatalf("%v, %v", inv, err)
	}
	stop := errors.New("enough")
	if err := s.Invocations(func(ident.InvocationID, *storepb.Invocation) error { return stop }); !errors.Is(err, stop) {
		t.Fatal(err)
	}
}

func TestStateHashLeavesOutLocalRows(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	put(t, s, []byte("a"), []byte("bc"))
	h1, _ := s.StateHash()
	put(t, s, []byte{keyspace.TagLocal, 'x'}, []byte("y"))
	h2, _ := s.StateHash()
	put(t, s, []byte("ab"), []byte("c"))
	h3, err := s.StateHash()
	if err != nil || h1 != h2 || h2 == h3 {
		t.Fatalf("%x %x %x %v", h1, h2, h3, err)
	}
}
