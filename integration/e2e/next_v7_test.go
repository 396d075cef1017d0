package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"perdure/integration/harness"
	"perdure/integration/scripted"
	"perdure/integration/wire"
)

// Version 7 of the service protocol is off unless a server is told, so these tests start one.

const awaitingOn uint16 = 0x0006

// Combinators of futures.
const (
	firstCompleted         = 1
	allCompleted           = 2
	firstSucceededOrFailed = 3
	allSucceededOrFailed   = 4
)

// Behaviours that an error message asks for.
const (
	behaviourPause = 1
	behaviourFail  = 2
)

// future is a Future message: what is waited for, by its ids, and how.
func future(combinator int, completions, signals []byte, nested ...[]byte) []byte {
	var b []byte
	if len(completions) > 0 {
		b = wire.AppendBytes(b, 1, completions)
	}
	if len(signals) > 0 {
		b = wire.AppendBytes(b, 2, signals)
	}
	for _, n := range nested {
		b = wire.AppendBytes(b, 4, n)
	}
	return wire.AppendUint(b, 5, uint64(combinator))
}

// orCancelled is what SDKs await: f, or the signal to cancel.
func orCancelled(f []byte) []byte { return future(firstCompleted, nil, []byte{1}, f) }

// suspendOn is a suspension of version 7.
func suspendOn(f []byte) wire.Frame {
	return wire.Frame{Type: wire.Suspension, Body: wire.AppendBytes(nil, 4, f)}
}

// v7 is a scene at a server of its own that speaks version 7.
func v7(t *testing.T, mode string) *scene {
	t.Helper()
	if target.server == nil {
		t.Skip("the server under test was started by somebody else, so nobody can switch version 7 on")
	}
	s := harness.Start(t, target.kind, map[string]string{"EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true"})
	c := newClient(s.Ingress(), s.Admin())
	if err := settle(c); err != nil {
		t.Fatal(err)
	}
	sc := &scene{endpoint: &endpoint{client: c}, s: startScripted(t, false), svc: name(t, "Seven")}
	sc.s.Discover(scripted.Discovery{Body: scripted.Manifest(mode, nil, scripted.Service{Name: sc.svc, Handlers: []scripted.Handler{
		{Name: "acks"}, {Name: "future"}, {Name: "fails"}, {Name: "awaits"},
	}, Extra: quick})})
	if _, err := c.register(map[string]any{"uri": sc.s.URL}); err != nil {
		t.Fatal(err)
	}
	return sc
}

// sendTo accepts an invocation of a handler of the scene and returns its id.
func (s *scene) sendTo(t *testing.T, handler, input string) string {
	t.Helper()
	a := s.in(t, request{path: "/" + s.svc + "/" + handler + "/send", body: input, header: map[string]string{"Content-Type": "text/plain"}})
	return decode[sent](t, a, 202).InvocationID
}

// result is the output of an invocation, or its failure as code and message.
func (s *scene) result(t *testing.T, id string) string {
	t.Helper()
	a := s.attach(t, id)
	if a.status == 200 {
		return string(a.body)
	}
	f := decode[struct {
		Code    int
		Message string
	}](t, a, a.status)
	return fmt.Sprintf("%d %s", f.Code, f.Message)
}

// TestNextV7 has its cases in one test because they share a server.
func TestNextV7(t *testing.T) {
	t.Parallel()
	s := v7(t, "BIDI_STREAM")
	t.Run("acks", func(t *testing.T) { t.Parallel(); s.v7Acks(t) })
	t.Run("futures", func(t *testing.T) { t.Parallel(); s.v7Futures(t) })
	t.Run("errors", func(t *testing.T) { t.Parallel(); s.v7Errors(t) })
	t.Run("awaiting", func(t *testing.T) { t.Parallel(); s.v7AwaitingOn(t) })
}

// v7Acks: the result of a step that asks for it is acknowledged live, and replayed as a whole.
func (s *scene) v7Acks(t *testing.T) {
	seen := make(chan string, 4)
	s.s.Handle(s.svc, "acks", func(a *scripted.Attempt) {
		if a.Number > 1 {
			var types []string
			for _, f := range a.Journal {
				types = append(types, fmt.Sprintf("%04x", f.Type))
			}
			seen <- strings.Join(types, " ")
			a.Send(done(string(wire.Content(a.Journal[2].Body, 5)))...)
			return
		}
		seen <- a.Request.Header.Get("Accept")
		asked := message(wire.ProposeRun, 1, 1, 14, "raw")
		asked.Flags = wire.RequestedAck
		// The second step asks for no acknowledgement and gets its whole result.
		a.Send(message(wire.Run, 11, 1), asked)
		if f, err := a.Next(); err == nil {
			id, _, _ := wire.Find(f.Body, 1)
			seen <- fmt.Sprintf("%04x %d", f.Type, id)
		}
		a.Send(message(wire.Run, 11, 2), message(wire.ProposeRun, 1, 2, 14, "raw2"))
		if f, err := a.Next(); err == nil {
			seen <- fmt.Sprintf("%04x %s", f.Type, wire.Content(f.Body, 5))
		}
		a.Send(scripted.Fail(500, "again"))
	})
	equal(t, "result", s.result(t, s.sendTo(t, "acks", "in")), "raw")
	for _, w := range []string{"application/vnd.restate.invocation.v7", "0007 1", "8011 raw2", "0400 0411 8011 0411 8011"} {
		equal(t, "seen", <-seen, w)
	}
}

// v7Futures: a suspended invocation runs again when the whole of what it awaits is decided, not before.
func (s *scene) v7Futures(t *testing.T) {
	// The input names the case. Each suspends once, in its first attempt.
	cases := map[string]struct {
		future []byte
		// signals come one after the other; the invocation must sleep until the last of them.
		signals []string
	}{
		"all":            {future(allSucceededOrFailed, nil, []byte{17, 18, 19}), []string{"+18", "+17", "+19"}},
		"all, one fails": {future(allSucceededOrFailed, nil, []byte{17, 18, 19}), []string{"+18", "-17"}},
		"any":            {future(firstSucceededOrFailed, nil, []byte{17, 18}), []string{"-17", "+18"}},
		"any, all fail":  {future(firstSucceededOrFailed, nil, []byte{17, 18}), []string{"-18", "-17"}},
		"settled":        {future(allCompleted, nil, []byte{17, 18}), []string{"-17", "+18"}},
		"race":           {future(firstCompleted, nil, []byte{17, 18}), []string{"-18"}},
		"race of alls": {future(firstCompleted, nil, nil, future(allCompleted, nil, []byte{17, 18}), future(allCompleted, nil, []byte{19, 20})),
			[]string{"+17", "+19", "+20"}},
		"all of races": {future(allCompleted, nil, nil, future(firstCompleted, nil, []byte{17, 18}), future(firstCompleted, nil, []byte{19, 20})),
			[]string{"+18", "+17", "-20"}},
		"any of alls": {future(firstSucceededOrFailed, nil, []byte{21}, future(allSucceededOrFailed, nil, []byte{17, 18}), future(allSucceededOrFailed, nil, []byte{19, 20})),
			[]string{"-17", "+19", "-21", "+20"}},
		"beside what is not awaited": {future(allCompleted, nil, []byte{17}), []string{"+18", "-19", "+17"}},
	}
	s.s.Handle(s.svc, "future", func(a *scripted.Attempt) {
		noteRawID(a)
		if a.Number == 1 {
			a.Send(suspendOn(orCancelled(cases[string(a.Input())].future)))
			return
		}
		a.Send(done(fmt.Sprintf("%d entries", len(a.Journal)))...)
	})
	for what, c := range cases {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			id := s.sendTo(t, "future", what)
			if err := s.s.AwaitAttempts(t.Context(), id, 1); err != nil {
				t.Fatal(err)
			}
			s.becomes(t, id, "suspended")
			for i, sig := range c.signals {
				s.signal(t, id, sig)
				if i < len(c.signals)-1 {
					s.staysSuspended(t, id, 2+i)
				}
			}
			equal(t, "result", s.result(t, id), fmt.Sprintf("%d entries", 1+len(c.signals)))
			equal(t, "attempts", s.s.Attempts(id), 2)
		})
	}
	t.Run("cancel", func(t *testing.T) {
		t.Parallel()
		id := s.sendTo(t, "future", "all")
		s.becomes(t, id, "suspended")
		check(t, s.end(t, id, "cancel"), want{status: 202, empty: true})
		equal(t, "result", s.result(t, id), "2 entries")
	})
}

// rawIDs are the 24 bytes of invocation ids, as an attempt of them was told, by their printable form.
var rawIDs sync.Map

func noteRawID(a *scripted.Attempt) {
	_, raw, _ := wire.Find(a.Start, 1)
	rawIDs.Store(a.Request.Header.Get("x-restate-invocation-id"), raw)
}

// awakeableOf is the id of an awakeable of an invocation, once that has been attempted.
func awakeableOf(t *testing.T, id string, n byte) string {
	t.Helper()
	var raw any
	poll(t, "an attempt of "+id, func() error {
		var ok bool
		if raw, ok = rawIDs.Load(id); !ok {
			return errors.New("it was not attempted")
		}
		return nil
	})
	return "sign_1" + base64.RawURLEncoding.EncodeToString(append(slices.Clone(raw.([]byte)), 0, 0, 0, n))
}

// signal completes an awakeable of the invocation: +N with a value, -N with a failure.
func (s *scene) signal(t *testing.T, id, sig string) {
	t.Helper()
	var n byte
	fmt.Sscanf(sig[1:], "%d", &n)
	op, body := "resolve", `"v"`
	if sig[0] == '-' {
		op, body = "reject", "no"
	}
	check(t, s.in(t, request{path: "/restate/awakeables/" + awakeableOf(t, id, n) + "/" + op, body: body}), want{status: 202})
}

// staysSuspended waits until the journal has so many entries: then what was sent is applied, and it must have left the
// invocation suspended.
func (s *scene) staysSuspended(t *testing.T, id string, entries int) {
	t.Helper()
	poll(t, fmt.Sprintf("%d entries", entries), func() error {
		if j := s.journal(t, id); len(j) != entries {
			return fmt.Errorf("it is %q", j)
		}
		return nil
	})
	s.becomes(t, id, "suspended")
	equal(t, "attempts so far", s.s.Attempts(id), 1)
}

// v7Errors: an error message says what is to become of the invocation.
func (s *scene) v7Errors(t *testing.T) {
	s.s.Handle(s.svc, "fails", func(a *scripted.Attempt) {
		behaviour, resumed := behaviourPause, a.Number > 1
		if string(a.Input()) == "fail" {
			behaviour, resumed = behaviourFail, false
		}
		if resumed {
			a.Send(done("resumed")...)
			return
		}
		f := scripted.Fail(418, "as it asked")
		f.Body = wire.AppendUint(f.Body, 9, uint64(behaviour))
		a.Send(f)
	})
	failed := s.sendTo(t, "fails", "fail")
	equal(t, "failed", s.result(t, failed), "418 as it asked")
	equal(t, "attempts", s.s.Attempts(failed), 1)
	paused := s.sendTo(t, "fails", "pause")
	if err := s.s.AwaitAttempts(t.Context(), paused, 1); err != nil {
		t.Fatal(err)
	}
	s.becomes(t, paused, "paused")
	equal(t, "attempts", s.s.Attempts(paused), 1)
	if target.kind == "perdure" {
		i := s.inspect(t, paused)
		if i.Status != "paused" || i.LastFailure == nil || i.LastFailure.Code != 418 || i.LastFailure.Message != "as it asked" {
			t.Errorf("paused: %+v", i)
		}
	}
	check(t, s.end(t, paused, "resume"), want{status: 200, empty: true})
	equal(t, "resumed", s.result(t, paused), "resumed")
}

// v7AwaitingOn: what a running handler waits for is told, shown and never answered.
func (s *scene) v7AwaitingOn(t *testing.T) {
	next := make(chan uint16, 1)
	s.s.Handle(s.svc, "awaits", func(a *scripted.Attempt) {
		noteRawID(a)
		a.Send(message(wire.Sleep, 1, int(time.Now().Add(time.Hour).UnixMilli()), 11, 1),
			message(awaitingOn, 1, orCancelled(future(allCompleted, []byte{1}, []byte{17}))))
		f, err := a.Next()
		if err != nil {
			return
		}
		next <- f.Type
		a.Send(done("x")...)
	})
	id := s.sendTo(t, "awaits", "in")
	if target.kind == "perdure" {
		var i info
		poll(t, "what it awaits", func() error {
			if i = s.inspect(t, id); i.WaitingFor == nil {
				return fmt.Errorf("%+v", i)
			}
			return nil
		})
		f := i.WaitingFor
		if i.Status != "running" || f.Combinator != "FirstCompleted" || !slices.Equal(f.Signals, []int{1}) || len(f.Nested) != 1 ||
			f.Nested[0].Combinator != "AllCompleted" || !slices.Equal(f.Nested[0].Completions, []int{1}) || !slices.Equal(f.Nested[0].Signals, []int{17}) {
			t.Errorf("it is %s and waits for %+v", i.Status, f)
		}
	} else if err := s.s.AwaitAttempts(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
	s.signal(t, id, "+17")
	equal(t, "what came next", <-next, wire.Signal)
	equal(t, "result", s.result(t, id), "x")
}
