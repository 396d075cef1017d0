package invokers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/transport"
)

// memTransport is a transport whose services are functions of the test. Each exchange is given to the next
// script; one too many fails the test.
type memTransport struct {
	t       testing.TB
	mu      sync.Mutex
	scripts []func(*service)
	opened  []*memStream
	openErr []error // returned by Open, in order, before scripts are used
	wg      sync.WaitGroup
}

func (m *memTransport) Open(ctx context.Context, ep transport.Endpoint, req transport.Request) (transport.Stream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.openErr) > 0 {
		err := m.openErr[0]
		m.openErr = m.openErr[1:]
		return nil, err
	}
	if len(m.scripts) == 0 {
		m.t.Errorf("one exchange more than the test expects: %s", req.Path)
		return nil, &transport.Error{Kind: transport.Connect, Err: errors.New("no script")}
	}
	s := &memStream{ctx: ctx, endpoint: ep, request: req, readable: make(chan struct{}, 1)}
	s.request.Header = slices.Clone(req.Header)
	s.cond = sync.NewCond(&s.mu)
	script := m.scripts[0]
	m.scripts = m.scripts[1:]
	m.opened = append(m.opened, s)
	m.wg.Go(func() { script(&service{t: m.t, s: s}) })
	return s, nil
}

// waitOpened waits until n exchanges were opened.
func (m *memTransport) waitOpened(t testing.TB, n int) {
	t.Helper()
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.opened) != n {
		t.Errorf("%d exchanges were opened, want %d", len(m.opened), n)
	}
}

// openFunc is a transport that is a function.
type openFunc func(openArgs) (transport.Stream, error)

type openArgs struct {
	ctx context.Context
	ep  transport.Endpoint
	req transport.Request
}

func (f openFunc) Open(ctx context.Context, ep transport.Endpoint, req transport.Request) (transport.Stream, error) {
	return f(openArgs{ctx, ep, req})
}

// memStream is an exchange in memory with unbounded buffers.
type memStream struct {
	ctx      context.Context
	endpoint transport.Endpoint
	request  transport.Request
	readable chan struct{}

	mu       sync.Mutex
	cond     *sync.Cond
	up       []byte // request body
	upEnd    bool
	head     *transport.Response
	down     []byte // response body
	downErr  error  // after down
	canceled bool
	blocked  bool // the service takes nothing
}

func (s *memStream) canceledErr() error {
	return &transport.Error{Kind: transport.Canceled, Err: errors.New("canceled")}
}

func (s *memStream) Write(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upEnd {
		return errors.New("write after the end of the request")
	}
	for s.blocked && !s.canceled {
		s.cond.Wait()
	}
	if s.canceled {
		return s.canceledErr()
	}
	s.up = append(s.up, b...)
	s.cond.Broadcast()
	return nil
}

func (s *memStream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upEnd = true
	s.cond.Broadcast()
	return nil
}

func (s *memStream) Response() (transport.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.head == nil && s.downErr == nil && !s.canceled {
		s.cond.Wait()
	}
	switch {
	case s.head != nil:
		return *s.head, nil
	case s.canceled:
		return transport.Response{}, s.canceledErr()
	}
	return transport.Response{}, s.downErr
}

func (s *memStream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.down) == 0 && s.downErr == nil && !s.canceled {
		s.cond.Wait()
	}
	switch {
	case s.canceled && s.downErr != io.EOF:
		return 0, s.canceledErr()
	case len(s.down) > 0:
		n := copy(p, s.down)
		s.down = s.down[n:]
		return n, nil
	}
	return 0, s.downErr
}

func (s *memStream) Buffered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.down) == 0 && s.downErr != nil {
		return -1
	}
	return len(s.down)
}

func (s *memStream) Readable() <-chan struct{} { return s.readable }

func (s *memStream) Cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.canceled = true
	s.cond.Broadcast()
}

// service is the other end of an exchange.
type service struct {
	t    testing.TB
	s    *memStream
	read int // bytes of the request that were read
}

// respond sends a response header.
func (v *service) respond(status int, header ...string) {
	r := &transport.Response{Status: status, Version: transport.HTTP2}
	for i := 0; i < len(header); i += 2 {
		r.Header = append(r.Header, transport.Field{Name: header[i], Value: header[i+1]})
	}
	v.s.mu.Lock()
	v.s.head = r
	v.s.cond.Broadcast()
	v.s.mu.Unlock()
}

// accept sends the header of a regular response for the version that the request asks for.
func (v *service) accept() {
	v.respond(200, "content-type", transport.Response{Header: v.s.request.Header}.Get("content-type"), "x-restate-server", "test-sdk/1.0")
}

// send sends bytes of the response body in one piece.
func (v *service) send(b ...[]byte) {
	v.s.mu.Lock()
	v.s.down = append(v.s.down, slices.Concat(b...)...)
	v.s.cond.Broadcast()
	v.s.mu.Unlock()
}

// end ends the response body, with io.EOF or a failure.
func (v *service) end(err error) {
	v.s.mu.Lock()
	v.s.downErr = err
	v.s.cond.Broadcast()
	v.s.mu.Unlock()
}

// next waits for the next frame of the request; ok is false at its end, or when the exchange was canceled.
func (v *service) next() (f protocol.Frame, ok bool) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	for {
		f, rest, _, ok, err := protocol.Split(v.s.up[v.read:], 1<<31-1)
		if err != nil {
			v.t.Errorf("the invoker sent nonsense: %v", err)
			return f, false
		}
		if ok {
			v.read = len(v.s.up) - len(rest)
			return f, true
		}
		if v.s.upEnd || v.s.canceled {
			return f, false
		}
		v.s.cond.Wait()
	}
}

// expect waits for a frame of a type.
func (v *service) expect(typ uint16) protocol.Frame {
	f, ok := v.next()
	if !ok || f.Type != typ {
		v.t.Errorf("the service got %s (%v), want %s", protocol.Name(f.Type), ok, protocol.Name(typ))
	}
	return f
}

// replay reads Start and the journal.
func (v *service) replay() (start protocol.Frame, entries []protocol.Frame) {
	start = v.expect(protocol.TypeStart)
	known := knownEntries(v.t, start)
	for range known {
		f, ok := v.next()
		if !ok {
			v.t.Errorf("the replay ends after %d of %d entries", len(entries), known)
			break
		}
		entries = append(entries, f)
	}
	return start, entries
}

// halfClosed waits until the request has ended regularly, and fails if a frame comes instead.
func (v *service) halfClosed() {
	if f, ok := v.next(); ok {
		v.t.Errorf("got %s instead of the end of the request", protocol.Name(f.Type))
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if !v.s.upEnd {
		v.t.Error("the exchange was canceled instead of half-closed")
	}
}

// canceled waits until the exchange is canceled.
func (v *service) canceled() {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	for !v.s.canceled {
		v.s.cond.Wait()
	}
}

// world is a pool with one partition, over a schema of the test, with a log in memory behind it.
type world struct {
	t         testing.TB
	pool      *Pool
	transport *memTransport
	schema    *testSchema
	log       *memLog
	partition *Partition
}

type testSchema struct {
	mu  sync.Mutex
	cur *schema.Schema
}

func (s *testSchema) Current() *schema.Schema {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur
}

func (s *testSchema) set(ds ...*schema.Deployment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur = schema.New(1, schema.DefaultDefaults(), ds)
}

var testDeployment = ident.DeploymentID{1, 2, 3}

func ptrTo[T any](v T) *T { return &v }

// deployment serves a plain service, an object and a workflow.
func deployment() *schema.Deployment {
	retry := schema.RetryOverrides{
		InitialInterval: ptrTo(100 * time.Millisecond), Factor: ptrTo(2.0), MaxInterval: ptrTo(10 * time.Second),
		MaxAttempts: ptrTo(uint64(4)), OnMaxAttempts: ptrTo(schema.Pause),
	}
	return &schema.Deployment{
		ID: testDeployment, ProtocolType: schema.BidiStream, MinProtocol: 5, MaxProtocol: 7, CreatedMs: 1,
		Address: schema.Address{HTTP: &schema.HTTPAddress{URI: "http://svc:9080/p", Version: schema.HTTP2}},
		Headers: map[string]string{"Authorization": "secret", "b": "2"},
		Services: []schema.ServiceRevision{
			{Name: "Svc", Type: schema.Service, Revision: 1, Overrides: schema.Overrides{Retry: retry}, Handlers: []schema.Handler{{Name: "greet", Type: schema.Shared}}},
			{Name: "Obj", Type: schema.VirtualObject, Revision: 1, Handlers: []schema.Handler{
				{Name: "add", Type: schema.Exclusive}, {Name: "get", Type: schema.Shared},
				{Name: "lazy", Type: schema.Exclusive, Overrides: schema.Overrides{LazyState: ptrTo(true)}},
			}},
			{Name: "Wf", Type: schema.Workflow, Revision: 1, Handlers: []schema.Handler{{Name: "run", Type: schema.WorkflowRun}, {Name: "peek", Type: schema.Shared}}},
		},
	}
}

// newWorld must be followed by the end of the test: it checks that nothing is left.
func newWorld(t testing.TB, change func(*Config, *Deps), scripts ...func(*service)) *world {
	t.Helper()
	w := &world{t: t, transport: &memTransport{t: t, scripts: scripts}, schema: &testSchema{}}
	w.schema.set(deployment())
	cfg := DefaultConfig("localcluster")
	deps := Deps{Schema: w.schema, Transport: w.transport, Jitter: func() float64 { return 0 }}
	if change != nil {
		change(&cfg, &deps)
	}
	var err error
	if w.pool, err = NewPool(cfg, deps); err != nil {
		t.Fatal(err)
	}
	w.log = newMemLog(t)
	w.partition = w.pool.Open(3, w.log)
	w.log.p = w.partition
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	w.log.close()
	w.partition.Close()
	w.transport.wg.Wait()
	if n := w.pool.memory.used.Load(); n != 0 {
		w.t.Errorf("%d bytes are still reserved", n)
	}
	w.pool.slots.mu.Lock()
	defer w.pool.slots.mu.Unlock()
	if n := w.pool.slots.used; n != 0 {
		w.t.Errorf("%d slots did not come back", n)
	}
	for d, sh := range w.pool.slots.shares {
		if sh.held != 0 || sh.waiting.Len() != 0 || sh.inTurn != nil {
			w.t.Errorf("deployment %s still has %d slots and %d waiting", d, sh.held, sh.waiting.Len())
		}
	}
	w.transport.mu.Lock()
	defer w.transport.mu.Unlock()
	if n := len(w.transport.scripts); n != 0 {
		w.t.Errorf("%d expected exchanges did not happen", n)
	}
}

// memLog is a host: it orders what is proposed, applies it to journals in memory, and tells the partition,
// all from one goroutine like a processor's loop.
type memLog struct {
	t testing.TB
	p *Partition

	// reply gives the notifications that a command leads to at once; may be nil.
	reply func(id ident.InvocationID, e *invocationpb.Effect) []Entry

	mu       sync.Mutex
	cond     *sync.Cond
	rows     map[ident.InvocationID]*row
	queue    []func() // what the loop has to do
	held     bool     // the loop stands still
	closed   bool
	refuse   error          // returned by Propose
	taken    func(proposal) // called before Propose returns; may be nil
	blocked  bool           // Propose waits
	reads    int
	unread   int            // reads that ended for lack of memory
	limits   []int          // of eager state
	onRead   func(*Journal) // sees what ReadJournal returns; may be nil
	readErr  error
	proposed []proposal
	loop     sync.WaitGroup
}

type proposal struct {
	id                    ident.InvocationID
	incarnation, sequence uint64
	effects               []*invocationpb.Effect
}

type row struct {
	Journal
	state  string // invoked, suspended, paused, ended, failed
	result *invocationpb.Failure
	events []*invocationpb.Effect_AttemptFailed
	last   *invocationpb.Effect
}

func newMemLog(t testing.TB) *memLog {
	l := &memLog{t: t, rows: map[ident.InvocationID]*row{}}
	l.cond = sync.NewCond(&l.mu)
	l.loop.Go(l.run)
	return l
}

func (l *memLog) run() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for len(l.queue) == 0 && !l.closed || l.held && !l.closed {
			l.cond.Wait()
		}
		if l.closed {
			return
		}
		f := l.queue[0]
		l.queue = l.queue[1:]
		f() // holds the lock; the partition does not call back
		l.cond.Broadcast()
	}
}

func (l *memLog) close() {
	l.mu.Lock()
	l.closed = true
	l.cond.Broadcast()
	l.mu.Unlock()
	l.loop.Wait()
}

// do runs f in the loop, after what was proposed before, and waits for it.
func (l *memLog) do(f func()) {
	done := make(chan struct{})
	l.mu.Lock()
	l.queue = append(l.queue, func() { f(); close(done) })
	l.cond.Broadcast()
	l.mu.Unlock()
	<-done
}

// hold lets the loop stand still, or go on.
func (l *memLog) hold(on bool) {
	l.mu.Lock()
	l.held = on
	l.cond.Broadcast()
	l.mu.Unlock()
}

// block lets Propose wait, or go on.
func (l *memLog) block(on bool) {
	l.mu.Lock()
	l.blocked = on
	l.cond.Broadcast()
	l.mu.Unlock()
}

// refuseWith makes Propose fail; nil lets it work again.
func (l *memLog) refuseWith(err error) {
	l.mu.Lock()
	l.refuse = err
	l.mu.Unlock()
}

func (l *memLog) ReadJournal(id ident.InvocationID, limitOf EagerLimit, reserve func(int) bool) (*Journal, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	if l.readErr != nil {
		return nil, l.readErr
	}
	r := l.rows[id]
	if r == nil || r.state != "invoked" {
		return nil, fmt.Errorf("invocation %s is not running", id)
	}
	j := r.Journal
	limit := limitOf(j.Target, j.Deployment)
	l.limits = append(l.limits, limit)
	j.Entries = slices.Clone(j.Entries)
	if limit == 0 {
		j.State, j.PartialState = nil, true
	}
	for i := range j.Entries {
		if !reserve(len(j.Entries[i].Raw)) {
			l.unread++
			return nil, fmt.Errorf("read: %w", ErrNoMemory)
		}
	}
	if l.onRead != nil {
		l.onRead(&j)
	}
	return &j, nil
}

func (l *memLog) Propose(ctx context.Context, id ident.InvocationID, incarnation, sequence uint64, effects []*invocationpb.Effect) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.blocked && ctx.Err() == nil {
		l.cond.Wait()
	}
	if l.refuse != nil {
		return l.refuse
	}
	p := proposal{id, incarnation, sequence, effects}
	l.proposed = append(l.proposed, p)
	l.queue = append(l.queue, func() { l.apply(p) })
	l.cond.Broadcast()
	if l.taken != nil {
		l.mu.Unlock()
		defer l.mu.Lock()
		l.taken(p)
	}
	return nil
}

func (l *memLog) apply(p proposal) {
	r := l.rows[p.id]
	if r.state == "invoked" && r.Incarnation == p.incarnation {
		for _, e := range p.effects {
			l.applyEffect(r, e)
		}
	}
	l.p.Applied(p.id, p.incarnation, p.sequence)
}

func (l *memLog) applyEffect(r *row, e *invocationpb.Effect) {
	r.last = e
	switch k := e.Kind.(type) {
	case *invocationpb.Effect_Pinned:
		copy(r.Deployment[:], k.Pinned.DeploymentId)
		r.ProtocolVersion = k.Pinned.ProtocolVersion
	case *invocationpb.Effect_Command_:
		r.Entries = append(r.Entries, Entry{Type: uint16(k.Command.Type), Raw: k.Command.Raw})
	case *invocationpb.Effect_Run:
		l.append(r, protocol.TypeRunCompletion, protocol.Completion(k.Run.CompletionId, k.Run.Result))
	case *invocationpb.Effect_Suspended_:
		r.state = "suspended"
	case *invocationpb.Effect_Paused_:
		r.state = "paused"
	case *invocationpb.Effect_End_:
		r.state = "ended"
	case *invocationpb.Effect_Failed_:
		r.state, r.result = "failed", k.Failed.Failure
	case *invocationpb.Effect_AttemptFailed_:
		r.events = append(r.events, k.AttemptFailed)
	}
	if l.reply != nil {
		for _, n := range l.reply(r.ID, e) {
			l.append(r, n.Type, n.Raw)
		}
	}
}

func (l *memLog) append(r *row, typ uint16, raw []byte) {
	r.Entries = append(r.Entries, Entry{Type: typ, Raw: raw})
	l.p.Notify(r.ID, r.Incarnation, uint32(len(r.Entries)-1), typ, raw)
}

// notify appends a notification.
func (l *memLog) notify(id ident.InvocationID, typ uint16, raw []byte) {
	l.do(func() { l.append(l.rows[id], typ, raw) })
}

// invoke starts an invocation of a target; fresh as a leader does for new ones.
func (l *memLog) invoke(id ident.InvocationID, target *invocationpb.Target, fresh bool, change ...func(*Journal)) {
	l.do(func() {
		r := &row{state: "invoked", Journal: Journal{
			ID: id, Incarnation: 1, Target: target, PartialState: !keyed(target),
			Entries: []Entry{{Type: protocol.TypeInput, Raw: []byte{0x72, 0}}},
		}}
		for _, c := range change {
			c(&r.Journal)
		}
		l.rows[id] = r
		var j *Journal
		if fresh {
			c := r.Journal
			c.Entries = slices.Clone(c.Entries)
			j = &c
		}
		l.p.Invoke(id, r.Incarnation, target.Service, r.Deployment, j)
	})
}

// resume starts a stopped invocation in a new incarnation.
func (l *memLog) resume(id ident.InvocationID) {
	l.do(func() {
		r := l.rows[id]
		r.state = "invoked"
		r.Incarnation++
		l.p.Invoke(id, r.Incarnation, r.Target.Service, r.Deployment, nil)
	})
}

// await waits until an invocation is in a state, and the invoker has forgotten it if that is not "invoked".
func (l *memLog) await(id ident.InvocationID, state string) *row {
	l.t.Helper()
	l.mu.Lock()
	for l.rows[id].state != state {
		l.cond.Wait()
	}
	r := *l.rows[id]
	l.mu.Unlock()
	return &r
}

// awaitAny waits until an invocation is in one of the states.
func (l *memLog) awaitAny(id ident.InvocationID, states ...string) *row {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !slices.Contains(states, l.rows[id].state) {
		l.cond.Wait()
	}
	r := *l.rows[id]
	return &r
}

// row gives a copy of an invocation's row.
func (l *memLog) row(id ident.InvocationID) row {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *l.rows[id]
}

// kinds names the effects of all proposals so far.
func (l *memLog) kinds() (out [][]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.proposed {
		var ks []string
		for _, e := range p.effects {
			ks = append(ks, kindOf(e))
		}
		out = append(out, ks)
	}
	return out
}

func kindOf(e *invocationpb.Effect) string {
	switch k := e.Kind.(type) {
	case *invocationpb.Effect_Pinned:
		return "pinned"
	case *invocationpb.Effect_Command_:
		return protocol.Name(uint16(k.Command.Type))
	case *invocationpb.Effect_Run:
		return "run"
	case *invocationpb.Effect_Suspended_:
		return "suspended"
	case *invocationpb.Effect_Paused_:
		return "paused"
	case *invocationpb.Effect_End_:
		return "end"
	case *invocationpb.Effect_Failed_:
		return "failed"
	case *invocationpb.Effect_AttemptFailed_:
		return "attempt failed"
	}
	return "?"
}

func invocationID(n byte) ident.InvocationID { return ident.InvocationID{0: n, 23: n} }

func plain() *invocationpb.Target {
	return &invocationpb.Target{Service: "Svc", Handler: "greet", ServiceType: uint32(schema.Service), HandlerType: uint32(schema.Shared)}
}

func object(handler, key string) *invocationpb.Target {
	typ := schema.Exclusive
	if handler == "get" {
		typ = schema.Shared
	}
	return &invocationpb.Target{Service: "Obj", Handler: handler, Key: key, ServiceType: uint32(schema.VirtualObject), HandlerType: uint32(typ)}
}
