package logserver

import (
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/nodes/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memStore is a store whose writes become durable when the test says so.
type memStore struct {
	mu       sync.Mutex
	queue    []*Write
	refuse   error
	full     bool
	loads    int
	meta     map[cluster.LogletID]Meta
	records  map[cluster.LogletID]map[cluster.Offset]Record
	readErr  error
	loading  chan struct{} // when set, Load says that it began and waits
	loaded   chan struct{} // when set, the next Load says that it has read and waits
	duringIO func()        // called within Read, after the records were collected
}

func newMemStore() *memStore {
	return &memStore{meta: map[cluster.LogletID]Meta{}, records: map[cluster.LogletID]map[cluster.Offset]Record{}}
}

func (s *memStore) Enqueue(w *Write) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return s.refuse
	}
	s.queue = append(s.queue, w)
	return nil
}

func (s *memStore) Backlogged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

func (s *memStore) Load(id cluster.LogletID) (Meta, error) {
	if s.loading != nil {
		s.loading <- struct{}{}
		<-s.loading
	}
	s.mu.Lock()
	s.loads++
	m, loaded := s.meta[id], s.loaded
	s.loaded = nil
	s.mu.Unlock()
	if loaded != nil {
		loaded <- struct{}{}
		<-loaded
	}
	return m, nil
}

func (s *memStore) Read(id cluster.LogletID, from, to cluster.Offset, maxBytes int) ([]Found, cluster.Offset, error) {
	s.mu.Lock()
	var found []Found
	next := to
	for o := from; o < to; o++ {
		r, ok := s.records[id][o]
		if !ok {
			continue
		}
		if maxBytes <= 0 {
			next = o
			break
		}
		maxBytes -= r.Size()
		found = append(found, Found{o, r})
	}
	err, during := s.readErr, s.duringIO
	s.mu.Unlock()
	if during != nil {
		during()
	}
	return found, next, err
}

func (s *memStore) Digest(id cluster.LogletID, from, to cluster.Offset) ([]Range, error) {
	return []Range{{from, to}}, nil
}

// sync makes everything durable, or fails it.
func (s *memStore) sync(err error) {
	s.mu.Lock()
	queue := s.queue
	s.queue = nil
	for _, w := range queue {
		if s.records[w.Loglet] == nil {
			s.records[w.Loglet] = map[cluster.Offset]Record{}
		}
		for i := range w.Records {
			s.records[w.Loglet][w.First+cluster.Offset(i)] = w.Records[i]
		}
	}
	s.mu.Unlock()
	for _, w := range queue {
		w.Owner.WriteDone(w, err)
	}
}

func newTestServer(t *testing.T, store *memStore) *Server {
	t.Helper()
	s := New(Config{Store: store, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	return s
}

type reply struct {
	m   transport.Message
	err error
}

func ask(s *Server, m transport.Message) chan reply {
	done := make(chan reply, 1)
	s.Handle(owner, m, func(m transport.Message, err error) { done <- reply{m, err} })
	return done
}

// get waits for the answer.
func get[T transport.Message](t *testing.T, done chan reply) T {
	t.Helper()
	select {
	case r := <-done:
		m, ok := r.m.(T)
		if r.err != nil || !ok {
			t.Fatalf("answer %T, %v", r.m, r.err)
		}
		return m
	case <-time.After(time.Minute):
		t.Fatal("no answer within a minute")
		panic("unreachable")
	}
}

func storeRequest(id cluster.LogletID, first cluster.Offset, payloads ...string) *StoreRequest {
	r := &StoreRequest{Header: Header{Loglet: id}, Sequencer: owner, First: first}
	for _, p := range payloads {
		r.Records = append(r.Records, Record{Payload: []byte(p)})
	}
	return r
}

func TestServerStoreAndRead(t *testing.T) {
	store := newMemStore()
	s := newTestServer(t, store)
	stored := ask(s, storeRequest(5, 1, "a", "b", "c"))
	if r := get[*ReadReply](t, ask(s, &ReadRequest{Header: Header{Loglet: 5}, From: 1, To: 10, MaxBytes: 1 << 20})); len(r.Records) != 0 || r.LocalTail != 1 {
		t.Errorf("%d records and local tail %d before the write is durable", len(r.Records), r.LocalTail)
	}
	store.sync(nil)
	if r := get[*StateReply](t, stored); r.Status != StatusOK || r.LocalTail != 4 {
		t.Errorf("store answered %+v", r)
	}
	r := get[*ReadReply](t, ask(s, &ReadRequest{Header: Header{Loglet: 5}, From: 2, To: 10, MaxBytes: 1 << 20}))
	if len(r.Records) != 2 || r.Records[0].Offset != 2 || string(r.Records[0].Record.Payload) != "b" || r.Next != 4 {
		t.Errorf("read %+v", r)
	}
	if d := get[*DigestReply](t, ask(s, &DigestRequest{Header: Header{Loglet: 5}, From: 1, To: 10})); !slices.Equal(d.Exists, []Range{{1, 4}}) {
		t.Errorf("digest %v, want it clipped at the durable tail", d.Exists)
	}
	if store.loads != 1 {
		t.Errorf("metadata was loaded %d times", store.loads)
	}
}

func TestServerReadMeetsTrim(t *testing.T) {
	store := newMemStore()
	s := newTestServer(t, store)
	stored := ask(s, storeRequest(5, 1, "a", "b", "c"))
	store.sync(nil)
	get[*StateReply](t, stored)
	// The trim comes while the read is in the store.
	store.mu.Lock()
	store.duringIO = func() { ask(s, &TrimRequest{Header: Header{Loglet: 5, KnownGlobalTail: 4}, UpTo: 2}) }
	store.mu.Unlock()
	r := get[*ReadReply](t, ask(s, &ReadRequest{Header: Header{Loglet: 5}, From: 1, To: 4, MaxBytes: 1 << 20}))
	if r.TrimmedTo != 2 || len(r.Records) != 1 || r.Records[0].Offset != 3 || r.Next != 4 {
		t.Errorf("read %+v, want trimmed to 2, record 3", r)
	}
	store.sync(nil)
}

func TestServerReadError(t *testing.T) {
	store := newMemStore()
	s := newTestServer(t, store)
	stored := ask(s, storeRequest(5, 1, "a"))
	store.sync(nil)
	get[*StateReply](t, stored)
	store.mu.Lock()
	store.readErr = errors.New("checksum")
	store.mu.Unlock()
	if r := get[*ReadReply](t, ask(s, &ReadRequest{Header: Header{Loglet: 5}, From: 1, To: 4, MaxBytes: 1})); r.Status != StatusError || r.Reason != "checksum" || len(r.Records) != 0 {
		t.Errorf("read %+v, want an error", r)
	}
}

func TestServerRefusesWhenOverloaded(t *testing.T) {
	store := newMemStore()
	s := newTestServer(t, store)
	store.full = true
	if r := get[*StateReply](t, ask(s, storeRequest(5, 1, "a"))); r.Status != StatusOverloaded {
		t.Errorf("store answered %v, want overloaded", r.Status)
	}
	if len(store.queue) != 0 {
		t.Error("a refused store was written")
	}
}

func TestServerStoreFails(t *testing.T) {
	store := newMemStore()
	s := newTestServer(t, store)
	first, second := ask(s, storeRequest(5, 1, "a")), ask(s, storeRequest(5, 2, "b"))
	store.sync(errors.New("disk"))
	for _, r := range []*StateReply{get[*StateReply](t, first), get[*StateReply](t, second)} {
		if r.Status != StatusDisabled || r.LocalTail != 1 {
			t.Errorf("store on a failing disk answered %+v", r)
		}
	}
	store.refuse = errors.New("disk")
	if r := get[*StateReply](t, ask(s, storeRequest(6, 1, "a"))); r.Status != StatusDisabled {
		t.Errorf("store on a refusing disk answered %v", r.Status)
	}
}

func TestServerDeclaresDataLoss(t *testing.T) {
	store := newMemStore()
	store.meta[5] = Meta{LocalTail: 3, DataLoss: true}
	var told []cluster.LogletID
	s := New(Config{Store: store, Logger: slog.New(slog.DiscardHandler), OnDataLoss: func(id cluster.LogletID) { told = append(told, id) }})
	defer s.Close()
	for _, m := range []transport.Message{
		storeRequest(5, 3, "a"), &InfoRequest{Header{Loglet: 5}}, &SealRequest{Header{Loglet: 5}}, &WaitTailRequest{Header: Header{Loglet: 5}, Tail: 2},
	} {
		if r := get[*StateReply](t, ask(s, m)); r.Status != StatusDataLoss {
			t.Errorf("%T answered %v, want data loss", m, r.Status)
		}
	}
	if r := get[*ReadReply](t, ask(s, &ReadRequest{Header: Header{Loglet: 5}, From: 1, To: 3, MaxBytes: 1})); r.Status != StatusDataLoss {
		t.Errorf("read answered %v, want data loss", r.Status)
	}
	if !slices.Equal(told, []cluster.LogletID{5}) {
		t.Errorf("told %v, want loglet 5 once", told)
	}
}

func TestServerForgetsIdleLoglets(t *testing.T) {
	store := newMemStore()
	s := newTestServer(t, store)
	for id := range cluster.LogletID(maxIdleLoglets) {
		store.meta[id] = Meta{Sealed: id%2 == 0, LocalTail: 7}
		get[*StateReply](t, ask(s, &InfoRequest{Header{Loglet: id}}))
	}
	get[*StateReply](t, ask(s, &InfoRequest{Header{Loglet: maxIdleLoglets + 1}}))
	if n := len(s.loglets); n > maxIdleLoglets {
		t.Errorf("%d loglets in memory, want at most %d", n, maxIdleLoglets)
	}
	for id := range cluster.LogletID(maxIdleLoglets) {
		if r := get[*StateReply](t, ask(s, &InfoRequest{Header{Loglet: id}})); r.LocalTail != 7 || r.Sealed != (id%2 == 0) {
			t.Fatalf("loglet %s answers %+v after others were forgotten", id, r)
		}
	}
}

// TestServerLoadIsOvertaken: while one request loads a loglet, others load it too, seal it, and make the server forget it. What
// the first has read is old then.
func TestServerLoadIsOvertaken(t *testing.T) {
	store := newMemStore()
	s := newTestServer(t, store)
	reading := make(chan struct{})
	store.loaded = reading
	answered := make(chan (chan reply))
	go func() { answered <- ask(s, storeRequest(5, 1, "late")) }()
	<-reading
	sealed := ask(s, &SealRequest{Header{Loglet: 5}})
	store.sync(nil)
	get[*StateReply](t, sealed)
	store.mu.Lock()
	store.meta[5] = Meta{LocalTail: 1, Sealed: true}
	store.mu.Unlock()
	for id := cluster.LogletID(10); s.knows(5); id++ {
		get[*StateReply](t, ask(s, &InfoRequest{Header{Loglet: id}}))
	}
	reading <- struct{}{}
	done := <-answered
	store.sync(nil)
	if r := get[*StateReply](t, done); r.Status != StatusSealed {
		t.Errorf("a store in a sealed loglet was answered %v", r.Status)
	}
}

func (s *Server) knows(id cluster.LogletID) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.loglets[id] != nil
}

// TestServerForgetsWhatDoesNotExist: asking for loglets that nobody has written to must not fill the memory.
func TestServerForgetsWhatDoesNotExist(t *testing.T) {
	s := newTestServer(t, newMemStore())
	for id := range cluster.LogletID(2 * maxIdleLoglets) {
		get[*StateReply](t, ask(s, &InfoRequest{Header{Loglet: id}}))
	}
	if n := len(s.loglets); n > maxIdleLoglets {
		t.Errorf("%d loglets in memory, want at most %d", n, maxIdleLoglets)
	}
}

// TestServerAnswersWithoutItsLock: who is told that the server is closed may call it again.
func TestServerAnswersWithoutItsLock(t *testing.T) {
	s := New(Config{Store: newMemStore(), Logger: slog.New(slog.DiscardHandler)})
	s.Close()
	s.Handle(owner, &ReadRequest{}, func(transport.Message, error) {
		if !s.mu.TryLock() {
			t.Error("the answer came while the server's lock was held")
			return
		}
		s.mu.Unlock()
	})
}

func TestServerClose(t *testing.T) {
	s := New(Config{Store: newMemStore(), Logger: slog.New(slog.DiscardHandler)})
	s.Close()
	for _, m := range []transport.Message{storeRequest(5, 1, "a"), &ReadRequest{}, &InfoRequest{}} {
		if r := <-ask(s, m); !errors.Is(r.err, ErrClosed) {
			t.Errorf("%T after close: %v, want ErrClosed", m, r.err)
		}
	}
	if r := <-ask(newTestServer(t, newMemStore()), &StateReply{}); r.err == nil {
		t.Error("an unknown message was answered")
	}
}

// TestServerCloseWaitsForLoads: the store may be closed when Close has returned.
func TestServerCloseWaitsForLoads(t *testing.T) {
	store := newMemStore()
	store.loading = make(chan struct{})
	s := New(Config{Store: store, Logger: slog.New(slog.DiscardHandler)})
	answered := make(chan struct{})
	go func() {
		ask(s, &InfoRequest{Header{Loglet: 5}})
		close(answered)
	}()
	<-store.loading
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	for !s.refuses() {
		runtime.Gosched()
	}
	select {
	case <-closed:
		t.Error("Close returned while the store was read")
	default:
	}
	store.loading <- struct{}{}
	<-closed
	<-answered
}

func (s *Server) refuses() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.closed
}
