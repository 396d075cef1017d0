// Package transporttest holds the conformance suite of transport.Transport: what every transport must do, whatever
// its protocol. The tests of a transport call Run with a function that serves an http.Handler in the way
// that the transport can reach.
package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"perdure/invokers/transport"
)

// patience is how long a test may take before it counts as hung. In a bubble being slow takes no time, elsewhere it does.
const (
	patience        = 30 * time.Second
	patienceOutside = 5 * time.Minute
)

// Abilities says what the protocol of a transport can do; the suite asks only for that.
type Abilities struct {
	// Streaming: request bytes arrive before the request ends, response bytes before the response ends,
	// and the service notices a cancel.
	Streaming bool
	// Duplex: response bytes arrive while the request is still open.
	Duplex bool
	// Version is what Response.Version must be.
	Version string
	// MaxBody is the size of the largest bodies to try.
	MaxBody int
	// Parallel is how many exchanges to try at once: more than one connection carries, where they share one.
	Parallel int
}

// Serve starts a service with the handler and a transport that reaches it, and registers their clean-up.
type Serve func(t *testing.T, h http.Handler) (transport.Transport, transport.Endpoint)

// Run runs the suite, each test in a bubble of synctest. The service has to be reached without sockets, as by Pipes: time
// passes in a bubble only when nobody waits for anything outside, and without time nothing that hangs would be found.
func Run(t *testing.T, can Abilities, serve Serve) {
	run(t, can, func(t *testing.T, test func(*suite)) {
		synctest.Test(t, func(t *testing.T) { within(t, patience, can, serve, test) })
	})
}

// RunOutside runs the suite without bubbles, for a service that is reached over sockets. The time limits of both sides
// should be long: being slow takes time here.
func RunOutside(t *testing.T, can Abilities, serve Serve) {
	run(t, can, func(t *testing.T, test func(*suite)) { within(t, patienceOutside, can, serve, test) })
}

// within runs a test and counts it as hung after limit.
func within(t *testing.T, limit time.Duration, can Abilities, serve Serve, test func(*suite)) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	test(&suite{t: t, ctx: ctx, can: can, serve: serve})
}

// run calls each for the tests that can passes.
func run(t *testing.T, can Abilities, each func(*testing.T, func(*suite))) {
	tests := []struct {
		name string
		run  bool
		test func(s *suite)
	}{
		{"discovery without a body", true, (*suite).discover},
		{"request and response", true, (*suite).requestResponse},
		{"header and target arrive as given", true, (*suite).header},
		{"statuses are passed on", true, (*suite).statuses},
		{"empty response", true, (*suite).emptyResponse},
		{"large bodies", true, (*suite).large},
		{"many exchanges at once", true, (*suite).concurrent},
		{"buffered and readable", true, (*suite).buffered},
		{"cancel unblocks the reader", true, (*suite).cancel},
		{"cancel before the request", true, (*suite).cancelEarly},
		{"cancel after the response", true, (*suite).cancelLate},
		{"context ends the exchange", true, (*suite).contextCanceled},
		{"deadline is a timeout", true, (*suite).deadline},
		{"open with an ended context", true, (*suite).openCanceled},
		{"request bytes leave at once", can.Streaming, (*suite).streamUp},
		{"response bytes arrive at once", can.Streaming, (*suite).streamDown},
		{"service sees the cancel", can.Streaming, (*suite).cancelSeen},
		{"bytes before a broken end are delivered", can.Streaming, (*suite).broken},
		{"slow reader holds up nobody else", can.Streaming, (*suite).slowReader},
		{"blocked writer is freed", can.Streaming, (*suite).blockedWriter},
		{"answer before the request ends", can.Streaming, (*suite).earlyAnswer},
		{"ping-pong", can.Duplex, (*suite).pingPong},
	}
	for _, tt := range tests {
		if tt.run {
			t.Run(tt.name, func(t *testing.T) { each(t, tt.test) })
		}
	}
}

type suite struct {
	t     *testing.T
	ctx   context.Context // ends with the test, or when it hangs
	can   Abilities
	serve Serve
	tr    transport.Transport
	ep    transport.Endpoint
}

func (s *suite) discover() {
	s.start(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) != 0 || r.Method != "GET" || !strings.HasSuffix(r.URL.Path, "/discover") {
			s.t.Errorf("got %s %s with %d bytes, %v", r.Method, r.URL.Path, len(body), err)
		}
		w.Header().Set("Content-Type", "application/json")
		_, err = w.Write([]byte("manifest"))
		s.check(err)
	})
	st, err := s.tr.Open(s.ctx, s.ep, transport.Request{Method: "GET", Path: "/discover"})
	if err != nil {
		s.t.Fatal(err)
	}
	defer st.Cancel()
	if err := st.CloseWrite(); err != nil {
		s.t.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		s.t.Fatalf("second CloseWrite: %v", err)
	}
	resp := s.response(st, 200)
	if resp.Get("content-type") != "application/json" || resp.Version != s.can.Version {
		s.t.Errorf("got %+v", resp)
	}
	if body, err := readAll(st); err != nil || string(body) != "manifest" {
		s.t.Errorf("got %q, %v", body, err)
	}
}

// echo answers with the request's body.
func (s *suite) echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	s.check(err)
	_, err = w.Write(body)
	s.check(err)
}

func (s *suite) requestResponse() {
	s.start(s.echo)
	st := s.open(s.ctx, "/invoke/S/h")
	for _, part := range []string{"one ", "two ", "three"} {
		if err := st.Write([]byte(part)); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := st.CloseWrite(); err != nil {
		s.t.Fatal(err)
	}
	s.response(st, 200)
	if body, err := readAll(st); err != nil || string(body) != "one two three" {
		s.t.Fatalf("got %q, %v", body, err)
	}
	for range 2 { // the end stays the end
		if _, err := st.Read(make([]byte, 1)); err != io.EOF {
			s.t.Fatalf("read after the end: %v", err)
		}
	}
	if err := st.Write([]byte("late")); err == nil {
		s.t.Error("write after CloseWrite succeeded")
	}
}

func (s *suite) header() {
	long := strings.Repeat("v", 20<<10) // more than one frame of HTTP/2
	s.start(func(w http.ResponseWriter, r *http.Request) {
		for name, want := range map[string]string{
			"x-plain": "p", "x-secret": "s", "x-long": long, "x-restate-service-key": "key%20%2F%C3%A9",
			"content-type": contentType.Value, "user-agent": "", "accept-encoding": "",
		} {
			if got := r.Header.Get(name); got != want {
				s.t.Errorf("%s is %.50q, want %.50q", name, got, want)
			}
		}
		if r.Method != "POST" || !strings.HasSuffix(r.URL.Path, "/invoke/S.x-y/h_1") {
			s.t.Errorf("got %s %s", r.Method, r.URL.Path)
		}
		if want := s.ep.Query; !s.ep.IsLambda() && r.URL.RawQuery != want {
			s.t.Errorf("query is %q, want %q", r.URL.RawQuery, want)
		}
		w.Header().Set("X-Restate-Server", "sdk/1")
		w.Header().Set("X-Long", long)
	})
	if !s.ep.IsLambda() {
		s.ep.Prefix, s.ep.Query = "/pre%20fix", "q=1&r=%20"
	}
	for range 2 { // the second time from the tables of header compression
		st := s.open(s.ctx, "/invoke/S.x-y/h_1", transport.Field{Name: "x-plain", Value: "p"},
			transport.Field{Name: "x-secret", Value: "s", NoIndex: true}, transport.Field{Name: "x-long", Value: long},
			transport.Field{Name: "x-restate-service-key", Value: "key%20%2F%C3%A9"})
		s.send(st, []byte("b"))
		resp := s.response(st, 200)
		if resp.Get("x-restate-server") != "sdk/1" || resp.Get("X-LONG") != long || resp.Get("x-absent") != "" {
			s.t.Errorf("response header is %.200v", resp.Header)
		}
		st.Cancel()
	}
}

func (s *suite) statuses() {
	var status int
	s.start(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(status)
	})
	for _, status = range []int{200, 201, 204, 301, 302, 307, 400, 404, 413, 415, 429, 500, 502, 503, 504, 599} {
		st := s.open(s.ctx, "/invoke/S/h")
		s.send(st, []byte("b"))
		if resp := s.response(st, status); resp.Get("retry-after") != "7" {
			s.t.Errorf("%d: retry-after is %q", status, resp.Get("retry-after"))
		}
		if body, err := readAll(st); err != nil || len(body) != 0 {
			s.t.Errorf("%d: body %q, %v", status, body, err)
		}
		st.Cancel()
	}
}

func (s *suite) emptyResponse() {
	s.start(func(http.ResponseWriter, *http.Request) {})
	st := s.open(s.ctx, "/invoke/S/h")
	s.send(st, []byte("b"))
	if n, err := st.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		s.t.Fatalf("got %d, %v", n, err)
	}
	if st.Buffered() != -1 {
		s.t.Errorf("buffered is %d at the end", st.Buffered())
	}
	s.response(st, 200) // stays available
}

// random returns n bytes that do not compress and differ with the seed.
func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b) // never fails
	return b
}

func (s *suite) large() {
	s.start(s.echo)
	for _, size := range []int{1 << 10, 64 << 10, s.can.MaxBody} {
		body := random(size, uint64(size))
		st := s.open(s.ctx, "/invoke/S/h")
		written := background(s, func() error {
			if err := st.Write(body); err != nil {
				return err
			}
			return st.CloseWrite()
		})
		got, err := readAll(st)
		if err != nil || !bytes.Equal(got, body) {
			s.t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		if err := wait(s, written, "end of the write"); err != nil {
			s.t.Errorf("%d bytes: write: %v", size, err)
		}
		st.Cancel()
	}
}

func (s *suite) concurrent() {
	s.start(s.echo)
	var wg sync.WaitGroup
	for i := range s.can.Parallel {
		wg.Go(func() {
			if err := s.roundTrip(random(100+i*31, uint64(i))); err != nil {
				s.t.Errorf("exchange %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func (s *suite) roundTrip(body []byte) error {
	st, err := s.tr.Open(s.ctx, s.ep, transport.Request{Method: "POST", Path: "/invoke/S/h", Header: []transport.Field{contentType}})
	if err != nil {
		return err
	}
	defer st.Cancel()
	if err := errors.Join(st.Write(body), st.CloseWrite()); err != nil {
		return err
	}
	got, err := readAll(st)
	if err == nil && !bytes.Equal(got, body) {
		err = fmt.Errorf("got %d other bytes for %d", len(got), len(body))
	}
	return err
}

// next waits as the contract of Readable says, and returns Buffered.
func (s *suite) next(st transport.Stream) int {
	s.t.Helper()
	for st.Buffered() == 0 {
		wait(s, st.Readable(), "arrival of bytes")
	}
	return st.Buffered()
}

func (s *suite) buffered() {
	s.start(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		s.check(err)
		_, err = w.Write([]byte("answer"))
		s.check(err)
	})
	st := s.open(s.ctx, "/invoke/S/h")
	if n := st.Buffered(); n != 0 {
		s.t.Fatalf("buffered is %d before the request", n)
	}
	s.send(st, []byte("b"))
	var got []byte
	for n := s.next(st); n > 0; n = s.next(st) {
		p := make([]byte, n)
		m, err := st.Read(p)
		if err != nil || m != n {
			s.t.Fatalf("read %d of %d buffered bytes: %v", m, n, err)
		}
		got = append(got, p...)
	}
	if string(got) != "answer" {
		s.t.Errorf("got %q", got)
	}
	if _, err := st.Read(make([]byte, 1)); err != io.EOF {
		s.t.Errorf("at the end: %v", err)
	}
}

// hang starts a service that answers only when the test ends, and returns a channel that tells of each request.
func (s *suite) hang() <-chan struct{} {
	came := make(chan struct{}, 100)
	over := make(chan struct{})
	s.start(func(w http.ResponseWriter, r *http.Request) {
		came <- struct{}{}
		<-over
	})
	s.t.Cleanup(func() { close(over) })
	return came
}

func (s *suite) cancel() {
	came := s.hang()
	st := s.open(s.ctx, "/invoke/S/h")
	s.send(st, []byte("b"))
	failed := background(s, func() error {
		_, err := st.Read(make([]byte, 1))
		return err
	})
	wait(s, came, "request")
	st.Cancel()
	s.wantKind(wait(s, failed, "end of the read"), transport.Canceled)
	st.Cancel()
	_, err := st.Response()
	s.wantKind(err, transport.Canceled)
	if n := s.next(st); n != -1 {
		s.t.Errorf("buffered is %d after a cancel", n)
	}
}

func (s *suite) cancelEarly() {
	s.start(func(http.ResponseWriter, *http.Request) { s.t.Error("the request was sent") })
	st := s.open(s.ctx, "/invoke/S/h")
	st.Cancel()
	s.wantKind(st.Write([]byte("b")), transport.Canceled)
	s.wantKind(st.CloseWrite(), transport.Canceled)
	_, err := st.Read(make([]byte, 1))
	s.wantKind(err, transport.Canceled)
}

func (s *suite) cancelLate() {
	s.start(s.echo)
	for range 300 { // a slot that leaks would run out
		st := s.open(s.ctx, "/invoke/S/h")
		s.send(st, []byte("b"))
		if _, err := readAll(st); err != nil {
			s.t.Fatal(err)
		}
		st.Cancel()
		st.Cancel()
		s.response(st, 200)
	}
}

func (s *suite) contextCanceled() {
	came := s.hang()
	reason := errors.New("leadership lost")
	ctx, cancel := context.WithCancelCause(s.ctx)
	st := s.open(ctx, "/invoke/S/h")
	s.send(st, []byte("b"))
	failed := background(s, func() error {
		_, err := st.Response()
		return err
	})
	wait(s, came, "request")
	cancel(reason)
	err := wait(s, failed, "end of the wait")
	s.wantKind(err, transport.Canceled)
	if !errors.Is(err, reason) {
		s.t.Errorf("error %v does not tell the cause", err)
	}
}

// expiring is a context whose deadline passes when the test says so.
type expiring struct {
	context.Context
	passed chan struct{}
}

func (e expiring) Done() <-chan struct{} { return e.passed }

func (e expiring) Err() error {
	select {
	case <-e.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func (s *suite) deadline() {
	came := s.hang()
	ctx := expiring{context.WithoutCancel(s.ctx), make(chan struct{})}
	st := s.open(ctx, "/invoke/S/h")
	s.send(st, []byte("b"))
	failed := background(s, func() error {
		_, err := st.Response()
		return err
	})
	wait(s, came, "request")
	close(ctx.passed)
	s.wantKind(wait(s, failed, "end of the wait"), transport.Timeout)
}

func (s *suite) openCanceled() {
	s.hang() // what has arrived already may be read
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	st, err := s.tr.Open(ctx, s.ep, transport.Request{Method: "GET", Path: "/discover"})
	if err == nil { // Open needed not to wait; the first call that does tells
		defer st.Cancel()
		_ = st.CloseWrite() // may or may not notice
		_, err = st.Response()
	}
	s.wantKind(err, transport.Canceled)
}

func (s *suite) streamUp() {
	parts := make(chan string)
	s.start(func(w http.ResponseWriter, r *http.Request) {
		p := make([]byte, 100)
		for {
			n, err := r.Body.Read(p)
			if n > 0 {
				parts <- string(p[:n])
			}
			if err != nil {
				close(parts)
				return
			}
		}
	})
	st := s.open(s.ctx, "/invoke/S/h")
	for _, part := range []string{"start", "journal", "notification"} {
		if err := st.Write([]byte(part)); err != nil {
			s.t.Fatal(err)
		}
		if got := wait(s, parts, "arrival of the part"); got != part {
			s.t.Fatalf("got %q, want %q", got, part)
		}
	}
	if err := st.CloseWrite(); err != nil {
		s.t.Fatal(err)
	}
	if got := wait(s, parts, "end of the body"); got != "" {
		s.t.Fatalf("got %q, want the end", got)
	}
}

func (s *suite) streamDown() {
	more := make(chan struct{})
	s.start(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		s.check(err)
		flush(w)
		for range more {
			_, err := w.Write([]byte("part"))
			s.check(err)
			flush(w)
		}
	})
	st := s.open(s.ctx, "/invoke/S/h")
	s.send(st, []byte("b"))
	s.response(st, 200)
	p := make([]byte, 100)
	for range 3 {
		more <- struct{}{}
		if n, err := st.Read(p); err != nil || string(p[:n]) != "part" {
			s.t.Fatalf("got %q, %v", p[:n], err)
		}
	}
	close(more)
	if _, err := st.Read(p); err != io.EOF {
		s.t.Fatalf("at the end: %v", err)
	}
}

func (s *suite) cancelSeen() {
	came, gone := make(chan struct{}), make(chan struct{})
	s.start(func(w http.ResponseWriter, r *http.Request) {
		flush(w)
		close(came)
		_, _ = io.Copy(io.Discard, r.Body) // ends with the cancel at the latest
		<-r.Context().Done()
		close(gone)
	})
	st := s.open(s.ctx, "/invoke/S/h")
	s.send(st, []byte("b"))
	wait(s, came, "request")
	st.Cancel()
	wait(s, gone, "end of the service's context")
}

func (s *suite) broken() {
	s.start(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body) // or the break may come before the end of the request
		s.check(err)
		_, err = w.Write([]byte("some"))
		s.check(err)
		flush(w)
		panic(http.ErrAbortHandler)
	})
	st := s.open(s.ctx, "/invoke/S/h")
	s.send(st, []byte("b"))
	s.response(st, 200)
	got, err := readAll(st)
	s.wantKind(err, transport.Reset)
	if string(got) != "some" {
		s.t.Errorf("got %q before the failure", got)
	}
	if _, again := st.Read(make([]byte, 1)); again != err {
		s.t.Errorf("second error %v differs from %v", again, err)
	}
}

// slowReader lets several exchanges that nobody reads fill their windows, and expects that another one passes.
func (s *suite) slowReader() {
	s.start(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/echo") {
			s.echo(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body) // a broken request shows at the client
		block := make([]byte, 64<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	for range 4 {
		st := s.open(s.ctx, "/invoke/S/flood")
		s.send(st, []byte("b"))
		s.response(st, 200)
		for st.Buffered() < 1<<20 {
			wait(s, st.Readable(), "flood")
		}
	}
	for i := range 5 {
		st := s.open(s.ctx, "/echo")
		body := random(300<<10, uint64(i))
		s.send(st, body)
		if got, err := readAll(st); err != nil || !bytes.Equal(got, body) {
			s.t.Fatalf("got %d bytes, %v", len(got), err)
		}
	}
}

// blockedWriter fills the window of a service that reads nothing.
func (s *suite) blockedWriter() {
	s.hang()
	st := s.open(s.ctx, "/invoke/S/h")
	failed := background(s, func() error {
		block := make([]byte, 1<<20)
		for {
			if err := st.Write(block); err != nil {
				return err
			}
		}
	})
	select {
	case err := <-failed:
		s.t.Fatalf("write failed before the cancel: %v", err)
	case <-time.After(time.Second): // passes in a bubble when nobody can go on: the window is full
	}
	st.Cancel()
	s.wantKind(wait(s, failed, "end of the write"), transport.Canceled)

	ctx, cancel := context.WithCancel(s.ctx)
	st = s.open(ctx, "/invoke/S/h")
	failed = background(s, func() error {
		block := make([]byte, 1<<20)
		for {
			if err := st.Write(block); err != nil {
				return err
			}
		}
	})
	cancel()
	s.wantKind(wait(s, failed, "end of the write"), transport.Canceled)
}

// earlyAnswer has a service that answers with an error without reading the request.
func (s *suite) earlyAnswer() {
	s.start(func(w http.ResponseWriter, r *http.Request) {
		s.check(http.NewResponseController(w).EnableFullDuplex()) // or an HTTP/1.1 server reads the request first
		w.WriteHeader(http.StatusUnsupportedMediaType)
		_, err := w.Write([]byte("no"))
		s.check(err)
	})
	st := s.open(s.ctx, "/invoke/S/h")
	if err := st.Write([]byte("start")); err != nil {
		s.t.Fatal(err)
	}
	s.response(st, 415)
	if body, err := readAll(st); err != nil || string(body) != "no" {
		s.t.Fatalf("got %q, %v", body, err)
	}
	for { // the service takes no more, sooner or later
		if err := st.Write(make([]byte, 64<<10)); err != nil {
			s.wantKind(err, transport.Reset)
			break
		}
	}
	if err := st.CloseWrite(); err != nil {
		s.t.Errorf("CloseWrite after a complete response: %v", err)
	}
}

func (s *suite) pingPong() {
	s.start(func(w http.ResponseWriter, r *http.Request) {
		s.check(http.NewResponseController(w).EnableFullDuplex())
		flush(w)
		p := make([]byte, 100)
		for {
			n, err := r.Body.Read(p)
			if n > 0 {
				_, werr := w.Write(p[:n])
				s.check(werr)
				flush(w)
			}
			if err != nil {
				return
			}
		}
	})
	st := s.open(s.ctx, "/invoke/S/h")
	p := make([]byte, 100)
	for i := range 100 {
		msg := fmt.Sprint("message ", i)
		if err := st.Write([]byte(msg)); err != nil {
			s.t.Fatal(err)
		}
		if n, err := st.Read(p); err != nil || string(p[:n]) != msg {
			s.t.Fatalf("got %q, %v", p[:n], err)
		}
	}
	if err := st.CloseWrite(); err != nil {
		s.t.Fatal(err)
	}
	if _, err := st.Read(p); err != io.EOF {
		s.t.Fatalf("at the end: %v", err)
	}
}
