package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"perdure/integration/scripted"
	"perdure/integration/wire"
)

// quick makes retries fast and endless, so that a misbehaving first attempt costs little.
var quick = map[string]any{"retryPolicyInitialInterval": 20, "retryPolicyMaxInterval": 100, "retryPolicyMaxAttempts": 1000}

// scene is one scripted endpoint with one service, an object and a workflow, registered with the shared server.
type scene struct {
	*endpoint
	s *scripted.Endpoint
	// svc, obj and wf are service names; each has a handler h, the workflow a run handler as well.
	svc, obj, wf string
}

func setup(t testing.TB, mode string, options map[string]any) *scene {
	t.Helper()
	s := &scene{endpoint: &endpoint{client: shared()}, s: startScripted(t, false), svc: name(t, "Sc"), obj: name(t, "Ob"), wf: name(t, "Wf")}
	extra := map[string]any{}
	if mode == "BIDI_STREAM" { // the scripts talk while the stream is open, whatever the server's default is
		extra["inactivityTimeout"] = 60_000
	}
	for k, v := range quick {
		extra[k] = v
	}
	for k, v := range options {
		extra[k] = v
	}
	s.s.Discover(scripted.Discovery{Body: scripted.Manifest(mode, map[string]any{"maxProtocolVersion": 6},
		scripted.Service{Name: s.svc, Handlers: []scripted.Handler{{Name: "h"}}, Extra: extra},
		scripted.Service{Name: s.obj, Type: "VIRTUAL_OBJECT", Handlers: []scripted.Handler{{Name: "h"}, {Name: "shared", Type: "SHARED"}}, Extra: extra},
		scripted.Service{Name: s.wf, Type: "WORKFLOW", Handlers: []scripted.Handler{{Name: "run", Type: "WORKFLOW"}, {Name: "h", Type: "SHARED"}}, Extra: extra})})
	if _, err := s.register(map[string]any{"uri": s.s.URL}); err != nil {
		t.Fatal(err)
	}
	return s
}

func done(value string) []wire.Frame { return []wire.Frame{scripted.Output(value), scripted.End()} }

// message builds a message from fields: a number is a varint, a string bytes, a []byte a submessage.
func message(typ uint16, fields ...any) wire.Frame {
	f := wire.Frame{Type: typ}
	for i := 0; i < len(fields); i += 2 {
		n := fields[i].(int)
		switch v := fields[i+1].(type) {
		case int:
			f.Body = wire.AppendUint(f.Body, n, uint64(v))
		case string:
			f.Body = wire.AppendBytes(f.Body, n, v)
		case []byte:
			f.Body = wire.AppendBytes(f.Body, n, v)
		default:
			panic(fmt.Sprintf("field %d has type %T", n, v))
		}
	}
	return f
}

func value(content string) []byte { return wire.AppendValue(nil, 1, []byte(content))[2:] }

// TestMisbehavingEndpointIsRetried: whatever the endpoint does wrong costs it the attempt, and nothing else. Every case
// misbehaves in its first attempt and is good in its second.
func TestMisbehavingEndpointIsRetried(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", nil)
	send := func(frames ...wire.Frame) scripted.Script {
		return func(a *scripted.Attempt) { a.Send(frames...) }
	}
	status := func(code int, contentType string) scripted.Script {
		return func(a *scripted.Attempt) { a.Respond(code, contentType) }
	}
	sign := "sign_1" + base64.RawURLEncoding.EncodeToString(make([]byte, 28))
	for name, bad := range map[string]scripted.Script{
		"nothing at all":             func(*scripted.Attempt) {},
		"status 404":                 status(404, "text/plain"),
		"status 500":                 status(500, "text/plain"),
		"status 502":                 status(502, "text/plain"),
		"status 415":                 status(415, ""),
		"status 413":                 status(413, ""),
		"status 401":                 status(401, ""),
		"status 302":                 status(302, ""),
		"status 204":                 status(204, ""),
		"wrong content type":         status(200, "application/json"),
		"content type of version 5":  status(200, "application/vnd.restate.invocation.v5"),
		"content type with charset":  status(200, scripted.ContentType+"; charset=utf-8"),
		"no content type":            status(200, ""),
		"half a header":              func(a *scripted.Attempt) { a.Write([]byte{4, 1, 0}) },
		"half a payload":             func(a *scripted.Attempt) { a.Write(wire.AppendHeader(nil, wire.Output, 0, 100)); a.Write([]byte("x")) },
		"frame of 4 GiB":             func(a *scripted.Attempt) { a.Write(wire.AppendHeader(nil, wire.Output, 0, 1<<32-1)); <-a.Done.Done() },
		"frame of 33 MiB":            func(a *scripted.Attempt) { a.Write(wire.AppendHeader(nil, wire.Output, 0, 33<<20)); <-a.Done.Done() },
		"error message":              send(scripted.Fail(500, "again")),
		"journal mismatch":           send(scripted.Fail(570, "mismatch")),
		"unknown control message":    send(message(0x0055)),
		"start from the endpoint":    send(message(wire.Start, 3, 1)),
		"ack from the endpoint":      send(message(wire.CommandAck, 1, 1)),
		"notification from endpoint": send(message(wire.SleepCompletion, 1, 1, 4, "")),
		"malformed protobuf":         send(wire.Frame{Type: wire.Call, Body: []byte{0x0a, 0xff}}),
		"suspension for nothing":     send(message(wire.Suspension)),
		"proposal without result":    send(message(wire.Run, 11, 1), message(wire.ProposeRun, 1, 1)),
		"state of a service":         send(message(wire.SetState, 1, "k", 3, value("v"))),
		"lazy get of a service":      send(message(wire.GetLazyState, 1, "k", 11, 1)),
		"clear state of a service":   send(message(wire.ClearState, 1, "k")),
		"promise of a service":       send(message(wire.GetPromise, 1, "k", 11, 1)),
		"call of nothing":            send(message(wire.Call, 1, "NoSuchService", 2, "h", 10, 1, 11, 2)),
		"call of no handler":         send(message(wire.Call, 1, s.svc, 2, "nope", 10, 1, 11, 2)),
		"send to nothing":            send(message(wire.OneWayCall, 1, "NoSuchService", 2, "h", 10, 1)),
		"key for a service":          send(message(wire.Call, 1, s.svc, 2, "h", 5, "key", 10, 1, 11, 2)),
		"empty idempotency key":      send(message(wire.Call, 1, s.svc, 2, "h", 6, "", 10, 1, 11, 2)),
		"signal to nobody":           send(message(wire.SendSignal, 1, "inv_bad", 2, 1, 4, "")),
		"attach to nonsense":         send(message(wire.AttachInvocation, 1, "inv_bad", 11, 1)),
		"output of nonsense":         send(message(wire.GetOutput, 1, "inv_bad", 11, 1)),
		"awakeable that is none":     send(message(wire.CompleteAwakeable, 1, "bad", 2, value("v"))),
		"awakeable, then no end":     send(message(wire.CompleteAwakeable, 1, sign, 2, value("v"))),
		"output, then no end":        send(scripted.Output("lost")),
		"output, then an error":      send(scripted.Output("lost"), scripted.Fail(500, "again")),
		"setstate-no-value":          send(message(wire.SetState, 1, "k")),
		"custom-message":             send(message(0xfc01)),
		"bare-end":                   send(scripted.End()),
		"end-without-output":         send(message(wire.Run, 11, 1), scripted.End()),
	} {
		t.Run(name, func(t *testing.T) {
			if differs(t, name) {
				return
			}
			t.Parallel()
			s := &scene{endpoint: s.endpoint, s: s.s, svc: s.svc, obj: s.obj}
			path, h := "/"+s.svc+"/h", s.svc
			if name == "setstate-no-value" {
				path, h = "/"+s.obj+"/"+fresh(t)+"/h", s.obj
			}
			_ = h
			s.misbehave(t, path, bad)
		})
	}
}

// misbehaviours are scripts by the input that selects them, because parallel cases share one handler.
var misbehaviours sync.Map

func (s *scene) misbehave(t *testing.T, path string, bad scripted.Script) {
	t.Helper()
	token := fresh(t)
	misbehaviours.Store(token, bad)
	script := func(a *scripted.Attempt) {
		bad, ok := misbehaviours.Load(string(a.Input()))
		if ok && a.Number == 1 {
			bad.(scripted.Script)(a)
			return
		}
		a.Send(done(fmt.Sprintf("good in attempt %d", a.Number))...)
	}
	s.s.Handle(s.svc, "h", script)
	s.s.Handle(s.obj, "h", script)
	check(t, s.in(t, request{path: path, body: token, header: map[string]string{"Content-Type": "text/plain"}}), want{status: 200, text: "good in attempt 2"})
}

func TestAttemptRequest(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", nil)
	type seen struct {
		header map[string]string
		target string
		start  []byte
		known  int
		input  wire.Frame
	}
	ch := make(chan seen, 1)
	script := func(a *scripted.Attempt) {
		r := a.Request
		got := seen{header: map[string]string{}, target: r.Method + " " + r.URL.String(), start: a.Start, known: len(a.Journal), input: a.Journal[0]}
		for k := range r.Header {
			got.header[strings.ToLower(k)] = strings.Join(r.Header[k], ",")
		}
		if r.ContentLength >= 0 || r.ProtoMajor != 2 {
			got.header["unexpected"] = fmt.Sprintf("content length %d over %s", r.ContentLength, r.Proto)
		}
		ch <- got
		a.Send(done("")...)
	}
	s.s.Handle(s.svc, "h", script)
	s.s.Handle(s.obj, "h", script)
	for _, key := range []string{"", "key /é"} {
		path, target := "/"+s.svc+"/h", "POST /invoke/"+s.svc+"/h"
		if key != "" {
			path, target = "/"+s.obj+"/"+url.PathEscape(key)+"/h", "POST /invoke/"+s.obj+"/h"
		}
		a := s.in(t, request{path: path, body: "in", header: map[string]string{"X-A": "1"}})
		check(t, a, want{status: 200, empty: true})
		got, id := <-ch, a.header.Get("x-restate-id")
		w := map[string]string{"content-type": scripted.ContentType, "accept": scripted.ContentType, "x-restate-invocation-id": id, "x-restate-cluster-name": "localcluster"}
		if key != "" {
			w["x-restate-service-key"] = "key%20%2F%C3%A9"
		}
		equal(t, "headers", got.header, w)
		equal(t, "target", got.target, target)
		equal(t, "entries", got.known, 1)
		equal(t, "type of the first entry", got.input.Type, wire.Input)
		equal(t, "input", string(wire.Content(got.input.Body, 14)), "in")
		field := func(n int) (uint64, string) {
			u, b, _ := wire.Find(got.start, n)
			return u, string(b)
		}
		raw, debug := func() ([]byte, string) { _, b := field(1); _, d := field(2); return []byte(b), d }()
		equal(t, "raw id length", len(raw), 24)
		equal(t, "printable id", debug, id)
		known, _ := field(3)
		equal(t, "known entries", known, uint64(1))
		_, k := field(6)
		equal(t, "key", k, key)
		partial, _ := field(5)
		equal(t, "partial state", partial == 1, key == "" || noEagerState()) // a service has none to be sure of, a new object has all of its none
		if seed, _ := field(9); seed == 0 {
			t.Error("no random seed")
		}
	}
}

func TestAttemptOfDeploymentBelowAPath(t *testing.T) {
	t.Parallel()
	c, s, svc := shared(), startScripted(t, false), name(t, "Below")
	s.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Handlers: []scripted.Handler{{Name: "h"}}})})
	s.Handle(svc, "h", func(a *scripted.Attempt) { a.Send(done(a.Request.URL.String())...) })
	if _, err := c.register(map[string]any{"uri": s.URL + "/a/b/?q=1", "additional_headers": map[string]string{"x-extra": "e"}}); err != nil {
		t.Fatal(err)
	}
	equal(t, "discovery", s.Discoveries()[0].URL.String(), "/a/b/discover?q=1")
	check(t, c.in(t, request{path: "/" + svc + "/h"}), want{status: 200, text: "/a/b/invoke/" + svc + "/h?q=1"})
}

func TestLastOutputWins(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", nil)
	s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
		a.Send(scripted.Output("first"), scripted.Output("second"), scripted.End(), scripted.Output("after the end"))
	})
	check(t, s.in(t, request{path: "/" + s.svc + "/h"}), want{status: 200, text: "second"})
}

func TestCommandAcks(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", nil)
	acks := make(chan uint64, 3)
	s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
		run := message(wire.Run, 11, 1)
		run.Flags = wire.RequestedAck
		out := scripted.Output("x")
		out.Flags = wire.RequestedAck
		a.Send(run, message(wire.Run, 11, 2), out)
		for range 2 {
			f := a.Await(wire.CommandAck)
			if f == nil {
				return
			}
			n, _, _ := wire.Find(f.Body, 1)
			acks <- n
		}
		a.Send(scripted.End())
	})
	check(t, s.in(t, request{path: "/" + s.svc + "/h"}), want{status: 200, text: "x"})
	equal(t, "first ack", <-acks, uint64(1))
	equal(t, "second ack", <-acks, uint64(3))
}

// TestJournalIsReplayedVerbatim: what an endpoint sent comes back byte by byte, unknown and oddly encoded fields
// included, with the notifications where they were stored.
func TestJournalIsReplayedVerbatim(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", nil)
	type start struct {
		known, retries, seed uint64
		journal              []wire.Frame
	}
	starts := make(chan start, 2)
	sleep := message(wire.Sleep, 12, "a name", 11, 7, 1, int(time.Now().Add(-time.Hour).UnixMilli())) // out of order
	run := message(wire.Run, 11, 300, 12, "", 99, "unknown field")
	live := make(chan []wire.Frame, 1)
	s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
		var st start
		st.known, _, _ = wire.Find(a.Start, 3)
		st.retries, _, _ = wire.Find(a.Start, 7)
		st.seed, _, _ = wire.Find(a.Start, 9)
		st.journal = a.Journal
		starts <- st
		if a.Number > 1 {
			a.Send(done("x")...)
			return
		}
		a.Send(sleep)
		first := a.Await(wire.SleepCompletion)
		a.Send(run, message(wire.ProposeRun, 1, 300, 14, "raw"))
		second := a.Await(wire.RunCompletion)
		if first != nil && second != nil {
			live <- []wire.Frame{*first, *second}
		}
		a.Send(scripted.Fail(500, "again"))
	})
	check(t, s.in(t, request{path: "/" + s.svc + "/h", body: "in"}), want{status: 200, text: "x"})
	one, two := <-starts, <-starts
	notified := <-live
	equal(t, "known entries", two.known, uint64(5))
	equal(t, "retries at first", one.retries, uint64(0))
	equal(t, "retries after progress and a failure", two.retries, uint64(1))
	equal(t, "random seed", two.seed, one.seed)
	w := []wire.Frame{one.journal[0], sleep, notified[0], run, notified[1]}
	for i, f := range two.journal {
		if i >= len(w) || f.Type != w[i].Type || !bytes.Equal(f.Body, w[i].Body) || f.Flags != 0 {
			t.Errorf("entry %d: got %v, want %v", i, f, w[min(i, len(w)-1)])
		}
	}
	equal(t, "completion of the step", string(wire.Content(notified[1].Body, 5)), "raw")
}

func TestSuspendAndResume(t *testing.T) {
	for _, mode := range []string{"BIDI_STREAM", "REQUEST_RESPONSE"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := setup(t, mode, nil)
			type seen struct {
				retries uint64
				types   []uint16
			}
			attempts := make(chan seen, 4)
			s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
				v := seen{}
				v.retries, _, _ = wire.Find(a.Start, 7)
				for _, f := range a.Journal {
					v.types = append(v.types, f.Type)
				}
				attempts <- v
				switch a.Number {
				case 1: // two timers, one due now: suspended on the later, so the earlier must not wake it
					now := time.Now()
					a.Send(message(wire.Sleep, 1, int(now.UnixMilli()), 11, 1), message(wire.Sleep, 1, int(now.Add(300*time.Millisecond).UnixMilli()), 11, 2), scripted.Suspend(2))
				case 2: // suspended on what is there already: at once again
					a.Send(scripted.Suspend(1, 2))
				default:
					a.Send(done("x")...)
				}
			})
			check(t, s.in(t, request{path: "/" + s.svc + "/h"}), want{status: 200, text: "x"})
			equal(t, "first", (<-attempts).types, []uint16{wire.Input})
			second := <-attempts
			// A completion comes after its command; whether it comes before the next command is the server's affair.
			equal(t, "first entries", second.types[:2], []uint16{wire.Input, wire.Sleep})
			equal(t, "last entry", second.types[len(second.types)-1], wire.SleepCompletion)
			slices.Sort(second.types)
			equal(t, "entries", second.types, []uint16{wire.Input, wire.Sleep, wire.Sleep, wire.SleepCompletion, wire.SleepCompletion})
			equal(t, "retries after a suspension", second.retries, uint64(0))
			equal(t, "third", len((<-attempts).types), 5)
		})
	}
}

// TestHalfClose: in request/response mode the request ends with the journal; in the other it ends after the inactivity
// timeout, and an endpoint that does not react is cut off after the abort timeout.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	t.Run("request/response", func(t *testing.T) {
		t.Parallel()
		s := setup(t, "REQUEST_RESPONSE", nil)
		s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
			_, err := a.Next()
			a.Send(done(fmt.Sprint(err))...)
		})
		check(t, s.in(t, request{path: "/" + s.svc + "/h"}), want{status: 200, text: io.EOF.Error()})
	})
	t.Run("inactivity 0", func(t *testing.T) {
		t.Parallel()
		s := setup(t, "BIDI_STREAM", map[string]any{"inactivityTimeout": 0})
		s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
			_, err := a.Next()
			a.Send(done(fmt.Sprint(err))...)
		})
		check(t, s.in(t, request{path: "/" + s.svc + "/h"}), want{status: 200, text: io.EOF.Error()})
	})
	t.Run("inactivity", func(t *testing.T) {
		t.Parallel()
		s := setup(t, "BIDI_STREAM", map[string]any{"inactivityTimeout": 1000})
		s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
			_, err := a.Next()
			a.Send(done(fmt.Sprint(err))...)
		})
		t0 := time.Now() // the server's clock starts after it, however late the script does
		check(t, s.in(t, request{path: "/" + s.svc + "/h"}), want{status: 200, text: io.EOF.Error()})
		if d := time.Since(t0); d < time.Second {
			t.Errorf("half-closed after %v, the timeout is 1s", d)
		}
	})
	t.Run("abort", func(t *testing.T) {
		t.Parallel()
		s := setup(t, "BIDI_STREAM", map[string]any{"inactivityTimeout": 100, "abortTimeout": 200})
		s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
			if a.Number == 1 {
				a.Send(message(wire.Run, 11, 1))
				<-a.Done.Done()
				return
			}
			a.Send(done("second")...)
		})
		t0 := time.Now()
		check(t, s.in(t, request{path: "/" + s.svc + "/h"}), want{status: 200, text: "second"})
		if d := time.Since(t0); d < 300*time.Millisecond {
			t.Errorf("cut off after %v, the timeouts are 300ms together", d)
		}
	})
}

func TestKillCutsTheStream(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", nil)
	in, cut := make(chan struct{}), make(chan struct{})
	s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
		a.Send(message(wire.Run, 11, 1))
		close(in)
		<-a.Done.Done()
		close(cut)
	})
	id := s.send(t, "/"+s.svc+"/h", nil)
	<-in
	check(t, s.end(t, id, "kill"), want{status: 200, empty: true})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case <-cut:
	case <-ctx.Done():
		t.Fatal("the stream was not cut")
	}
	check(t, s.attach(t, id), want{status: 409, json: `{"code":409,"message":"killed","source":"invocation"}`})
	equal(t, "attempts", s.s.Attempts(id), 1)
}

func TestRetryDelayFromTheEndpoint(t *testing.T) {
	t.Parallel()
	// With one attempt allowed, delays that the endpoint asks for still do not use it up.
	s := setup(t, "BIDI_STREAM", map[string]any{"retryPolicyMaxAttempts": 1, "retryPolicyOnMaxAttempts": "KILL"})
	for name, c := range map[string]struct {
		fail     scripted.Script
		failures int
		delays   time.Duration // of all failures together
	}{
		"error message": {func(a *scripted.Attempt) { a.Send(message(wire.Error, 1, 500, 2, "later", 8, 100)) }, 4, 400 * time.Millisecond},
		"retry after": {func(a *scripted.Attempt) {
			a.Header().Set("Retry-After", "1")
			a.Respond(503, "")
		}, 1, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
				if a.Number <= c.failures {
					c.fail(a)
					return
				}
				a.Send(done("x")...)
			})
			t0 := time.Now()
			check(t, s.in(t, request{path: "/" + s.svc + "/h"}), want{status: 200, text: "x"})
			if d := time.Since(t0); d < c.delays {
				t.Errorf("took %v, the delays alone take %v", d, c.delays)
			}
		})
	}
}

func TestMaxAttemptsKill(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", map[string]any{"retryPolicyMaxAttempts": 2, "retryPolicyOnMaxAttempts": "KILL"})
	for name, c := range map[string]struct {
		fail scripted.Script
		want want
	}{
		"error message": {func(a *scripted.Attempt) { a.Send(scripted.Fail(503, "no")) }, want{status: 503, json: `{"code":503,"message":"no","source":"invocation","...":""}`}},
		"status":        {func(a *scripted.Attempt) { a.Respond(404, "text/plain") }, want{status: 500, json: `{"code":500,"message":"unexpected http status code: 404 Not Found","source":"invocation"}`}},
		"no message":    {func(a *scripted.Attempt) {}, want{status: 500, json: `{"code":500,"message":"unknown","source":"invocation"}`}},
		"unsupported":   {func(a *scripted.Attempt) { a.Respond(415, "") }, want{status: 415, json: `{"code":415,"message":"…","source":"invocation"}`}},
	} {
		t.Run(name, func(t *testing.T) {
			s.s.Handle(s.svc, "h", c.fail)
			a := s.in(t, request{path: "/" + s.svc + "/h"})
			check(t, a, c.want)
			equal(t, "attempts", s.s.Attempts(a.header.Get("x-restate-id")), 2)
		})
	}
}

func TestEagerAndLazyState(t *testing.T) {
	t.Parallel()
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lazy=%v", lazy), func(t *testing.T) {
			t.Parallel()
			s := setup(t, "BIDI_STREAM", map[string]any{"enableLazyState": lazy})
			states := make(chan string, 2)
			s.s.Handle(s.obj, "h", func(a *scripted.Attempt) {
				var st []string
				wire.Fields(a.Start, func(n int, u uint64, b []byte) error {
					switch n {
					case 4:
						_, k, _ := wire.Find(b, 1)
						_, v, _ := wire.Find(b, 2)
						st = append(st, fmt.Sprintf("%s=%s", k, v))
					case 5:
						st = append(st, fmt.Sprintf("partial=%d", u))
					}
					return nil
				})
				states <- strings.Join(st, " ")
				if len(a.Input()) > 0 { // set
					a.Send(message(wire.SetState, 1, "b", 3, value("2")), message(wire.SetState, 1, "a", 3, value("1")), message(wire.SetState, 1, "e", 3, value("")))
					a.Send(done("")...)
					return
				}
				a.Send(message(wire.GetLazyState, 1, "a", 11, 1), message(wire.GetLazyState, 1, "e", 11, 2), message(wire.GetLazyState, 1, "none", 11, 3))
				var got []string
				for range 3 {
					f := a.Await(0x8002)
					if f == nil {
						return
					}
					_, _, void := wire.Find(f.Body, 4)
					got = append(got, fmt.Sprintf("%s/%v", wire.Content(f.Body, 5), void))
				}
				a.Send(done(strings.Join(got, " "))...)
			})
			path := "/" + s.obj + "/" + fresh(t) + "/h"
			check(t, s.in(t, request{path: path, body: "set"}), want{status: 200, empty: true})
			first := <-states
			check(t, s.in(t, request{path: path}), want{status: 200, text: "1/false /false /true"})
			second := <-states
			if lazy || noEagerState() {
				equal(t, "state of a new object", first, "partial=1")
				equal(t, "state", second, "partial=1")
			} else {
				equal(t, "state of a new object", first, "")
				equal(t, "state", second, "a=1 b=2 e=")
			}
		})
	}
}

// TestStateIsRefusedToSharedHandlers: writes from a shared handler cost the attempt.
func TestStateIsRefusedToSharedHandlers(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", nil)
	script := func(a *scripted.Attempt) {
		if a.Number == 1 {
			a.Send(message(wire.SetState, 1, "k", 3, value("v")), scripted.Output("wrong"), scripted.End())
			return
		}
		a.Send(done(fmt.Sprint(a.Replayed(wire.SetState)))...)
	}
	s.s.Handle(s.obj, "shared", script)
	s.s.Handle(s.wf, "h", script)
	check(t, s.in(t, request{path: "/" + s.obj + "/" + fresh(t) + "/shared"}), want{status: 200, text: "false"})
	check(t, s.in(t, request{path: "/" + s.wf + "/" + fresh(t) + "/h"}), want{status: 200, text: "false"})
}

// TestCallsFromTheWire: the id of a callee is notified before its result, a past time runs at once, and results carry
// codes, messages and metadata unchanged.
func TestCallsFromTheWire(t *testing.T) {
	t.Parallel()
	s := setup(t, "BIDI_STREAM", nil)
	s.s.Handle(s.obj, "h", func(a *scripted.Attempt) {
		if string(a.Input()) == "fail" {
			meta := wire.AppendBytes(wire.AppendBytes(nil, 1, "mk"), 2, "mv")
			failure := wire.AppendBytes(wire.AppendBytes(wire.AppendUint(nil, 1, 418), 2, "teapot"), 3, meta)
			a.Send(wire.Frame{Type: wire.Output, Body: wire.AppendBytes(nil, 15, failure)}, scripted.End())
			return
		}
		a.Send(done("echo " + string(a.Input()))...)
	})
	s.s.Handle(s.svc, "h", func(a *scripted.Attempt) {
		key := string(a.Input())
		a.Send(message(wire.Call, 1, s.obj, 2, "h", 3, "in", 5, key, 10, 5, 11, 6))
		id, result := a.Await(wire.CallInvocationID), a.Await(wire.CallCompletion)
		if id == nil || result == nil {
			return
		}
		_, printed, _ := wire.Find(id.Body, 16)
		cid, _, _ := wire.Find(id.Body, 1)
		rid, _, _ := wire.Find(result.Body, 1)
		out := fmt.Sprintf("%v %d %d %s", placeholders["<inv>"].Match(printed), cid, rid, wire.Content(result.Body, 5))

		a.Send(message(wire.Call, 1, s.obj, 2, "h", 3, "fail", 5, key, 10, 7, 11, 8))
		if result = a.Await(wire.CallCompletion); result == nil {
			return
		}
		_, failure, _ := wire.Find(result.Body, 6)
		code, _, _ := wire.Find(failure, 1)
		_, msg, _ := wire.Find(failure, 2)
		_, meta, _ := wire.Find(failure, 3)
		_, mk, _ := wire.Find(meta, 1)
		_, mv, _ := wire.Find(meta, 2)
		out += fmt.Sprintf(" %d %s %s=%s", code, msg, mk, mv)

		a.Send(message(wire.OneWayCall, 1, s.obj, 2, "h", 3, "x", 4, 1, 6, key, 10, 9))
		if id = a.Await(wire.CallInvocationID); id == nil {
			return
		}
		_, sentID, _ := wire.Find(id.Body, 16)
		a.Send(message(wire.AttachInvocation, 1, string(sentID), 11, 10))
		if result = a.Await(wire.AttachCompletion); result == nil {
			return
		}
		out += fmt.Sprintf(" %s", wire.Content(result.Body, 5))
		a.Send(done(out)...)
	})
	check(t, s.in(t, request{path: "/" + s.svc + "/h", body: fresh(t)}), want{status: 200, text: "true 5 6 echo in 418 teapot mk=mv echo x"})
}
