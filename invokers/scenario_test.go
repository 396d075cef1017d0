package invokers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
	"weak"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/invokers/tracing"
	"perdure/invokers/transport"
)

// bubble runs a test with a clock of its own.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func v7(c *Config, _ *Deps) { c.AnnounceV7 = true }

// fails answers with an Error message.
func fails(m *protocolpb.Error) func(*service) {
	return func(v *service) {
		v.accept()
		v.replay()
		v.send(errorFrame(m))
		v.halfClosed()
		v.end(eof)
	}
}

func TestSuspendAndResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil,
			func(v *service) {
				v.accept()
				v.replay()
				v.send(sleepFrame(1), suspendFrame(1))
				v.halfClosed()
				v.end(eof)
			},
			func(v *service) {
				v.accept()
				_, entries := v.replay()
				if len(entries) != 3 || entries[2].Type != protocol.TypeSleepCompletion {
					t.Errorf("replayed %d entries", len(entries))
				}
				v.send(output("done"), endFrame)
				v.halfClosed()
				v.end(eof)
			})
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		w.log.await(id, "suspended")
		synctest.Wait()
		if _, ok := w.partition.StatusOf(id); ok {
			t.Error("a suspended invocation costs something")
		}
		w.log.notify(id, protocol.TypeSleepCompletion, sleepDone(1).Raw)
		w.log.resume(id)
		w.log.await(id, "ended")
		want := [][]string{{"pinned", "SleepCommandMessage", "suspended"}, {"OutputCommandMessage", "end"}}
		if got := w.log.kinds(); !reflect.DeepEqual(got, want) {
			t.Errorf("proposed %v, want %v", got, want)
		}
	})
}

// TestNotifications: what is appended while the exchange is open is forwarded in order; what was in the
// replay is not sent again, also if the news of it comes later than the journal was read.
func TestNotifications(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		var w *world
		w = newWorld(t, nil, func(v *service) {
			v.accept()
			v.replay()
			v.send(sleepFrame(1), sleepFrame(2))
			synctest.Wait()
			// News of entries that the replay held.
			w.log.do(func() { w.partition.Notify(id, 1, 0, protocol.TypeSignal, protocol.SignalIndex(9, nil)) })
			// News of another incarnation.
			w.log.do(func() { w.partition.Notify(id, 2, 50, protocol.TypeSignal, protocol.SignalIndex(9, nil)) })
			for _, n := range []uint32{2, 1} {
				w.log.notify(id, protocol.TypeSleepCompletion, sleepDone(n).Raw)
			}
			for _, n := range []uint32{2, 1} {
				if f := v.expect(protocol.TypeSleepCompletion); protocol.IdentifyNotification(f.Payload).Number != n {
					t.Errorf("got %x, want the completion of %d", f.Payload, n)
				}
			}
			v.send(output("x"), endFrame)
			v.halfClosed()
			v.end(eof)
		})
		w.log.invoke(id, plain(), true)
		w.log.await(id, "ended")
	})
}

// TestNotificationsWhileOpening: between the reading of the journal and the replay, news is kept and
// compared with what was read.
func TestNotificationsWhileOpening(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		opening, open := make(chan struct{}), make(chan struct{})
		w := newWorld(t, func(_ *Config, d *Deps) {
			inner := d.Transport
			d.Transport = openFunc(func(o openArgs) (transport.Stream, error) {
				close(opening)
				<-open
				return inner.Open(o.ctx, o.ep, o.req)
			})
		}, func(v *service) {
			v.accept()
			if _, entries := v.replay(); len(entries) != 1 {
				t.Errorf("replayed %d entries, want 1", len(entries))
			}
			if f := v.expect(protocol.TypeSignal); protocol.IdentifyNotification(f.Payload).Number != 17 {
				t.Errorf("got %x", f.Payload)
			}
			v.send(output("x"), endFrame)
			v.halfClosed()
			v.end(eof)
		})
		w.log.invoke(id, plain(), false)
		<-opening
		w.log.do(func() { w.partition.Notify(id, 1, 0, protocol.TypeSignal, protocol.SignalIndex(9, nil)) })
		w.log.notify(id, protocol.TypeSignal, protocol.SignalIndex(17, nil))
		close(open)
		w.log.await(id, "ended")
	})
}

// TestMemoryWhileOpening: news that comes while an exchange is being opened is bounded as any other; what was not kept is in the
// journal of the next attempt. A service that gets no news does without.
func TestMemoryWhileOpening(t *testing.T) {
	for _, half := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			id := invocationID(1)
			big := protocol.SignalName("s", &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: make([]byte, 30<<10)}})
			open := make(chan struct{})
			scripts := []func(*service){func(v *service) { v.canceled() }, func(v *service) {
				v.accept()
				v.replay()
				v.send(output("x"), endFrame)
				v.end(eof)
			}}
			if half {
				scripts = scripts[1:]
			}
			w := newWorld(t, func(c *Config, d *Deps) {
				c.InvocationMemoryLimit = 64 << 10
				inner := d.Transport
				d.Transport = openFunc(func(o openArgs) (transport.Stream, error) {
					<-open
					return inner.Open(o.ctx, o.ep, o.req)
				})
			}, scripts...)
			if half {
				w.schema.set(lambdaDeployment())
			}
			w.log.invoke(id, plain(), true)
			for range 5 {
				w.log.notify(id, protocol.TypeSignal, big)
			}
			if n := w.pool.memory.used.Load(); n < 60<<10 || n > 70<<10 {
				t.Errorf("%d bytes are reserved for news, want 64 KiB at most and not much less", n)
			}
			close(open)
			if r := w.log.await(id, "ended"); len(r.events) != 0 {
				t.Errorf("events %v", r.events)
			}
		})
	}
}

// TestNewsAfterTheEnd: a notification that overtakes the end of an attempt whose exchange was never open reserves nothing,
// for nobody would give it back.
func TestNewsAfterTheEnd(t *testing.T) {
	w := newWorld(t, nil)
	a := newAttempt(&invocation{p: w.partition, id: invocationID(1)}, nil)
	defer a.cancel(nil)
	a.send.release()
	a.notify(1, protocol.TypeSignal, protocol.SignalIndex(17, nil))
	if n := w.pool.memory.used.Load(); n != 0 {
		t.Errorf("%d bytes are reserved for good", n)
	}
}

// TestRetryPolicy: delays, counters and the record of failures, until the policy is at its end.
func TestRetryPolicy(t *testing.T) {
	for _, end := range []schema.ExhaustedRetry{schema.Pause, schema.Kill} {
		bubble(t, func(t *testing.T) {
			var at []time.Time
			var counts []uint32
			attempt := func(v *service) {
				at = append(at, time.Now())
				v.accept()
				start, _ := v.replay()
				counts = append(counts, startOf(t, start).RetryCountSinceLastStoredEntry)
				v.send(errorFrame(&protocolpb.Error{Code: 501, Message: "no", Stacktrace: "at x"}))
				v.halfClosed()
				v.end(eof)
			}
			w := newWorld(t, nil, attempt, attempt, attempt, attempt)
			d := deployment()
			d.Services[0].Overrides.Retry.OnMaxAttempts = &end
			w.schema.set(d)
			id := invocationID(1)
			w.log.invoke(id, plain(), true)
			var r *row
			if end == schema.Kill {
				r = w.log.await(id, "failed")
				if r.result.Code != 501 || r.result.Message != "no" {
					t.Errorf("the invocation failed with %v", r.result)
				}
			} else {
				r = w.log.await(id, "paused")
				if f := r.last.GetPaused().GetLastFailure(); f.GetMessage() != "no" || f.GetDocCode() != codeHandler {
					t.Errorf("the last failure is %v", f)
				}
			}
			if !reflect.DeepEqual(counts, []uint32{0, 1, 2, 3}) {
				t.Errorf("retry counts %v", counts)
			}
			for i, want := range []time.Duration{0, 100, 300, 700} {
				if got := at[i].Sub(at[0]); got != want*time.Millisecond {
					t.Errorf("attempt %d after %s, want %d ms", i+1, got, want)
				}
			}
			if len(r.events) != 1 || r.events[0].Stacktrace != "at x" || r.events[0].Code != 501 {
				t.Errorf("events %v, want the failure once", r.events)
			}
			if !r.Deployment.IsZero() {
				t.Error("an invocation without progress is pinned")
			}
		})
	}
}

// TestRetryCounters: progress resets the count that the SDK sees, but not the policy's. Delays that the
// service sets are not counted by the policy.
func TestRetryCounters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := uint32(0)
		progress := func(v *service) {
			n++
			v.accept()
			start, entries := v.replay()
			if got := startOf(t, start).RetryCountSinceLastStoredEntry; got != min(n-1, 1) || len(entries) != int(n) {
				t.Errorf("attempt %d: count %d, %d entries", n, got, len(entries))
			}
			v.send(runFrame(n), errorFrame(&protocolpb.Error{Code: 500, Message: "again"}))
			v.halfClosed()
			v.end(eof)
		}
		w := newWorld(t, nil, progress, progress, progress, progress)
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		w.log.await(id, "paused")
	})
	bubble(t, func(t *testing.T) {
		var scripts []func(*service)
		for range 10 {
			scripts = append(scripts, fails(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(7000))}))
		}
		w := newWorld(t, nil, append(scripts, echo)...)
		id := invocationID(1)
		start := time.Now()
		w.log.invoke(id, plain(), true)
		w.log.await(id, "ended")
		if d := time.Since(start); d != 70*time.Second {
			t.Errorf("took %s, want ten delays of 7 s", d)
		}
	})
}

// TestStatusCodes: an error status ends the attempt at once, whatever is still to be sent, and Retry-After
// replaces the policy's delay.
func TestStatusCodes(t *testing.T) {
	for status, code := range map[int]string{503: codeOverloaded, 404: codeProtocol, 415: codeUnsupportedMedia, 413: codeEntityTooLarge, 502: codeNetwork} {
		bubble(t, func(t *testing.T) {
			start := time.Now()
			w := newWorld(t, nil, func(v *service) {
				v.respond(status, "retry-after", "5")
				v.canceled()
			}, func(v *service) {
				if d := time.Since(start); (status == 503) != (d == 5*time.Second) {
					t.Errorf("%d: retried after %s", status, d)
				}
				v.accept()
				first, _ := v.replay()
				if n := startOf(t, first).RetryCountSinceLastStoredEntry; (status == 415) != (n == 0) {
					t.Errorf("%d: the service sees %d retries", status, n)
				}
				v.send(output("x"), endFrame)
				v.end(eof)
			})
			id := invocationID(1)
			w.log.invoke(id, plain(), true)
			if r := w.log.await(id, "ended"); len(r.events) != 1 || r.events[0].DocCode != code {
				t.Errorf("%d: events %v, want %s", status, r.events, code)
			}
		})
	}
}

// TestBrokenStreams: whatever breaks an exchange is retried and recorded with its code.
func TestBrokenStreams(t *testing.T) {
	terr := func(k transport.Kind) *transport.Error {
		return &transport.Error{Kind: k, Endpoint: "http://svc", Err: errors.New("cause")}
	}
	for _, c := range []struct {
		name   string
		open   error
		script func(*service)
		code   string
		text   string
	}{
		{"cannot connect", terr(transport.Connect), nil, codeNetwork, "connect failed"},
		{"reset before the response", nil, func(v *service) { v.end(terr(transport.Reset)) }, codeNetwork, "connection reset"},
		{"reset after the response", nil, func(v *service) { v.accept(); v.end(terr(transport.Reset)) }, codeNetwork, "connection reset"},
		{"end without a last message", nil, func(v *service) { v.accept(); v.send(runFrame(1)); v.end(eof) }, codeHandler, "unknown"},
		{"end within a message", nil, func(v *service) { v.accept(); v.send(runFrame(1)[:9]); v.end(eof) }, codeHandler, "unknown"},
		{"throttled", func() error { e := terr(transport.Throttled); e.RetryAfter = time.Second; return e }(), nil, codeNetwork, "throttled"},
		{"not processed", terr(transport.NotProcessed), nil, codeNetwork, "not processed"},
	} {
		bubble(t, func(t *testing.T) {
			scripts := []func(*service){echo}
			if c.script != nil {
				scripts = []func(*service){func(v *service) { c.script(v); v.canceled() }, echo}
			}
			w := newWorld(t, nil, scripts...)
			if c.open != nil {
				w.transport.openErr = []error{c.open}
			}
			id := invocationID(1)
			w.log.invoke(id, plain(), true)
			r := w.log.await(id, "ended")
			if len(r.events) != 1 || r.events[0].DocCode != c.code || !strings.Contains(r.events[0].Message, c.text) || r.events[0].Code != 500 {
				t.Errorf("%s: events %v, want %s with %q", c.name, r.events, c.code, c.text)
			}
		})
	}
}

// TestTexts: what a service says about its failure is kept and stored. It is made valid, and cut at a character.
func TestTexts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		long := strings.Repeat("x", maxText-1) + strings.Repeat("ß", 1<<20)
		w := newWorld(t, nil, fails(&protocolpb.Error{Code: 500, Message: long, Stacktrace: long, RelatedCommandName: &long}), func(v *service) {
			v.accept()
			v.replay()
			v.send(frame(protocol.TypeSleep, &protocolpb.SleepCommand{Name: long + "\xff"}))
			v.end(eof)
		}, func(v *service) {
			v.respond(200, "content-type", "text/\xff")
			v.canceled()
		}, func(v *service) {
			v.accept()
			v.replay()
			v.send(frame(protocol.TypeSleep, &protocolpb.SleepCommand{Name: "\xff"}))
			v.end(eof)
		}, echo)
		id := invocationID(1)
		w.log.invoke(id, object("get", "k"), false)
		r := w.log.await(id, "ended")
		if len(r.events) != 4 {
			t.Fatalf("%d events, want 4", len(r.events))
		}
		for _, e := range r.events {
			for _, s := range []string{e.Message, e.Stacktrace, e.GetRelatedCommandName()} {
				if len(s) > maxText+100 || !utf8.ValidString(s) {
					t.Errorf("a text of %d bytes, ending with %q", len(s), s[max(0, len(s)-60):])
				}
			}
		}
		if want := fmt.Sprintf("x (the first %d of %d bytes)", maxText-1, len(long)); !strings.HasSuffix(r.events[0].Message, want) {
			t.Errorf("the message ends with %q, want %q", r.events[0].Message[maxText-20:], want)
		}
	})
}

// TestRefusedRequests: what the service did not see is tried again soon and uncounted, but not for ever.
func TestRefusedRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for range maxRefused + 4 {
			w.transport.openErr = append(w.transport.openErr, &transport.Error{Kind: transport.NotProcessed, Err: errors.New("GOAWAY")})
		}
		start := time.Now()
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		r := w.log.await(id, "paused")
		if d := time.Since(start); d != maxRefused*refusedDelay+700*time.Millisecond {
			t.Errorf("took %s", d)
		}
		if f := r.last.GetPaused().GetLastFailure(); f.GetDocCode() != codeNetwork {
			t.Errorf("last failure %v", f)
		}
	})
}

// TestTooLargePauses: a request that the transport can never carry is not tried again and again.
func TestTooLargePauses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.transport.openErr = []error{&transport.Error{Kind: transport.TooLarge, Err: errors.New("7 MB")}}
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		r := w.log.await(id, "paused")
		if f := r.last.GetPaused().GetLastFailure(); f.GetDocCode() != codeTooLarge {
			t.Errorf("last failure %v", f)
		}
	})
}

// TestRetryWaitsForTheLog: however long the log takes, the next attempt sees everything that the one
// before proposed.
func TestRetryWaitsForTheLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var w *world
		w = newWorld(t, nil, func(v *service) {
			v.accept()
			v.replay()
			w.log.hold(true) // before the first proposal: on a busy machine this service is faster than the test
			v.send(runFrame(1), proposeFrame(1, "r"), errorFrame(&protocolpb.Error{Code: 500}))
			v.halfClosed()
			v.end(eof)
		}, func(v *service) {
			v.accept()
			if _, entries := v.replay(); len(entries) != 3 {
				t.Errorf("replayed %d entries, want 3", len(entries))
			}
			v.send(output("x"), endFrame)
			v.halfClosed()
			v.end(eof)
		})
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		elapse(time.Hour)
		s, ok := w.partition.StatusOf(id)
		if !ok || s.InFlight || s.RetryCount != 1 {
			t.Errorf("status %+v", s)
		}
		w.log.hold(false)
		w.log.await(id, "ended")
	})
}

// TestInactivity: silence on both sides half-closes the request; each frame puts it off.
func TestInactivity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil, func(v *service) {
			start := time.Now()
			v.accept()
			v.replay()
			elapse(50 * time.Second)
			v.send(sleepFrame(1))
			v.halfClosed()
			if d := time.Since(start); d != 110*time.Second {
				t.Errorf("half-closed after %s, want 1m50s", d)
			}
			v.send(suspendFrame(1))
			v.end(eof)
		})
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		w.log.await(id, "suspended")
	})
}

// TestAbortTimeout: a service that does not react to the half-close is broken off; bytes that are no whole
// frame are no reaction.
func TestAbortTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil, func(v *service) {
			start := time.Now()
			v.accept()
			v.replay()
			v.halfClosed()
			frame := runFrame(1)
			elapse(5 * time.Minute)
			v.send(frame)
			for i := range frame[:8] {
				v.send(frame[i : i+1])
				elapse(time.Minute)
			}
			v.canceled()
			if d := time.Since(start); d != 16*time.Minute {
				t.Errorf("broken off after %s, want 1 + 5 + 10 minutes", d)
			}
		}, echo)
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		r := w.log.await(id, "ended")
		if len(r.events) != 1 || r.events[0].DocCode != codeAbortTimeout {
			t.Errorf("events %v", r.events)
		}
	})
}

// TestSilenceOfTheLog: while the log takes nothing, the service is neither asked to suspend nor broken off for its silence;
// its own counts from then on.
func TestSilenceOfTheLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var w *world
		w = newWorld(t, nil, func(v *service) {
			start := time.Now()
			v.accept()
			v.replay()
			w.log.block(true)
			v.send(sleepFrame(1))
			elapse(30*time.Minute + time.Second)
			w.log.block(false)
			v.halfClosed()
			if d := time.Since(start); d != 31*time.Minute+time.Second {
				t.Errorf("half-closed after %s, want a minute after the log took the command", d)
			}
			w.log.block(true)
			v.send(sleepFrame(2))
			elapse(30 * time.Minute)
			w.log.block(false)
			v.send(suspendFrame(1))
			v.end(eof)
		})
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		if r := w.log.await(id, "suspended"); len(r.events) != 0 {
			t.Errorf("events %v", r.events)
		}
	})
}

// TestRequestResponse: the request ends behind the journal, nothing is sent live, and the abort timeout
// runs from the start.
func TestRequestResponse(t *testing.T) {
	for _, how := range []string{"manifest", "inactivity 0"} {
		bubble(t, func(t *testing.T) {
			id := invocationID(1)
			var w *world
			w = newWorld(t, nil, func(v *service) {
				v.replay()
				v.halfClosed()
				w.log.notify(id, protocol.TypeSignal, protocol.SignalIndex(17, nil))
				v.accept()
				v.send(withAck(sleepFrame(1)))
				synctest.Wait()
				v.halfClosed()
				v.canceled() // after the abort timeout
			}, func(v *service) {
				if _, entries := v.replay(); len(entries) != 3 {
					t.Errorf("replayed %d entries", len(entries))
				}
				v.accept()
				v.send(suspendFrame(1))
				v.end(eof)
			})
			d := deployment()
			if how == "manifest" {
				d.ProtocolType = schema.RequestResponse
			} else {
				d.Services[0].Overrides.InactivityTimeout = ptrTo(time.Duration(0))
			}
			w.schema.set(d)
			start := time.Now()
			w.log.invoke(id, plain(), true)
			w.log.await(id, "suspended")
			if d := time.Since(start); d != 10*time.Minute+100*time.Millisecond {
				t.Errorf("%s: took %s", how, d)
			}
		})
	}
}

// TestAbort: the exchange is reset without an effect, in every phase.
func TestAbort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var w *world
		id := invocationID(1)
		w = newWorld(t, func(c *Config, _ *Deps) { c.ConcurrencyLimit = 1 }, func(v *service) {
			v.accept()
			v.replay()
			w.log.do(func() { w.partition.Abort(id) })
			v.canceled()
		}, fails(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(500))}), echo)
		w.log.invoke(id, plain(), true)
		w.transport.waitOpened(t, 1)
		synctest.Wait()
		if n := len(w.log.kinds()); n != 0 {
			t.Errorf("%d proposals", n)
		}
		// Waiting for a retry with a slot, and queued behind it.
		a, b, c := invocationID(2), invocationID(3), invocationID(4)
		w.log.invoke(a, plain(), true)
		w.log.invoke(b, plain(), true)
		w.log.invoke(c, plain(), true)
		synctest.Wait()
		w.log.do(func() { w.partition.Abort(b) })
		w.log.do(func() { w.partition.Abort(a) })
		w.log.await(c, "ended")
	})
}

// TestAbortWhileOpening: an invocation that is killed while its exchange is being opened leaves nothing.
func TestAbortWhileOpening(t *testing.T) {
	bubble(t, func(t *testing.T) {
		opening := make(chan struct{})
		w := newWorld(t, func(_ *Config, d *Deps) {
			d.Transport = openFunc(func(o openArgs) (transport.Stream, error) {
				close(opening)
				<-o.ctx.Done()
				return nil, transport.ContextError(o.ctx, "")
			})
		})
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		<-opening
		w.log.do(func() { w.partition.Abort(id) })
		synctest.Wait()
		if n := len(w.log.kinds()); n != 0 {
			t.Errorf("%d proposals", n)
		}
	})
}

// TestNewIncarnationReplaces: nothing of an earlier incarnation is proposed once a later one began.
func TestNewIncarnationReplaces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		var w *world
		w = newWorld(t, nil, func(v *service) {
			v.accept()
			v.replay()
			w.log.resume(id)
			v.canceled()
			v.send(output("late"), endFrame)
		}, echo)
		w.log.invoke(id, plain(), true)
		w.log.await(id, "ended")
		if got := w.log.kinds(); len(got) != 1 {
			t.Errorf("proposed %v", got)
		}
		w.log.do(func() { w.partition.Invoke(id, 1, "Svc", ident.DeploymentID{}, nil) }) // late news of the first
		synctest.Wait()
	})
}

// TestPause: in every phase.
func TestPause(t *testing.T) {
	running := func(name string, then func(*service), state string, failure bool) {
		bubble(t, func(t *testing.T) {
			id := invocationID(1)
			var w *world
			w = newWorld(t, nil, func(v *service) {
				v.accept()
				v.replay()
				w.log.do(func() { w.partition.Pause(id); w.partition.Pause(id) })
				v.halfClosed()
				then(v)
				v.end(eof)
			})
			w.log.invoke(id, plain(), true)
			r := w.log.await(id, state)
			if p := r.last.GetPaused(); p != nil && (p.LastFailure != nil) != failure {
				t.Errorf("%s: paused with failure %v", name, p.LastFailure)
			}
		})
	}
	running("the service suspends", func(v *service) { v.send(sleepFrame(1), suspendFrame(1)) }, "paused", false)
	running("the service fails", func(v *service) { v.send(errorFrame(&protocolpb.Error{Code: 500})) }, "paused", true)
	running("the stream breaks", func(v *service) {}, "paused", true)
	running("the service ends", func(v *service) { v.send(output("x"), endFrame) }, "ended", false)

	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil, fails(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(1e6))}))
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		synctest.Wait()
		w.log.do(func() { w.partition.Pause(id) })
		w.log.await(id, "paused")
	})
	bubble(t, func(t *testing.T) { // queued, and while its last effects cannot enter the log
		id, other := invocationID(1), invocationID(2)
		var w *world
		w = newWorld(t, func(c *Config, _ *Deps) { c.ConcurrencyLimit = 1 }, func(v *service) {
			v.accept()
			v.replay()
			w.log.invoke(other, plain(), true)
			w.log.do(func() { w.partition.Pause(other) })
			w.log.await(other, "paused")
			v.send(output("x"), endFrame)
			v.halfClosed()
			v.end(eof)
		})
		w.log.invoke(id, plain(), true)
		w.log.await(id, "ended")
	})
}

// TestPauseOfWhatIsPutBack: an attempt that is put back while it is asked to pause is not followed by another one, which
// nobody would ask.
func TestPauseOfWhatIsPutBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		var w *world
		w = newWorld(t, nil, func(v *service) {
			v.accept()
			v.replay()
			w.log.do(func() { w.partition.Pause(id) })
			v.halfClosed()
			w.log.refuseWith(errors.New("the log takes nothing"))
			v.send(sleepFrame(1))
			v.canceled()
			w.log.refuseWith(nil)
		})
		w.log.invoke(id, plain(), true)
		w.log.await(id, "paused")
	})
}

// TestPauseOfWhatIsQueuedAgain: the record of a failure is applied before the call that proposed it has returned, and the
// invocation waits for a slot again. If it is asked to pause then, it gets no other attempt, which nobody would ask.
func TestPauseOfWhatIsQueuedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id, other := invocationID(1), invocationID(2)
		returns, proceed := make(chan struct{}), make(chan struct{})
		w := newWorld(t, func(c *Config, _ *Deps) { c.ConcurrencyLimit = 1 },
			fails(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(2000))}),
			func(v *service) {
				v.accept()
				v.replay()
				<-proceed
				v.send(output("x"), endFrame)
				v.halfClosed()
				v.end(eof)
			})
		w.log.taken = func(p proposal) {
			if p.id == id {
				<-returns
			}
		}
		w.log.invoke(id, plain(), true)
		synctest.Wait()
		w.log.invoke(other, plain(), true)
		elapse(3 * time.Second)
		if s, _ := w.partition.StatusOf(id); !s.Queued {
			t.Errorf("it does not wait for the other's slot: %+v", s)
		}
		w.log.do(func() { w.partition.Pause(id) })
		close(proceed)
		w.log.await(other, "ended")
		synctest.Wait()
		close(returns)
		w.log.await(id, "paused")
	})
}

// TestPauseBehindABlockedProposal: the pause is proposed after the effects that are being proposed, never
// beside them.
func TestPauseBehindABlockedProposal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		w := newWorld(t, nil, fails(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(1e6))}))
		w.log.block(true)
		w.log.invoke(id, plain(), true)
		synctest.Wait()
		w.log.do(func() { w.partition.Pause(id) })
		synctest.Wait()
		w.log.block(false)
		w.log.await(id, "paused")
		if got, want := w.log.kinds(), [][]string{{"attempt failed"}, {"paused"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("proposed %v, want %v", got, want)
		}
	})
}

func TestRetryNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil, fails(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(1e6))}), echo)
		id := invocationID(1)
		start := time.Now()
		w.log.invoke(id, plain(), true)
		synctest.Wait()
		w.log.do(func() { w.partition.RetryNow(id); w.partition.RetryNow(id) })
		w.log.await(id, "ended")
		if d := time.Since(start); d != 0 {
			t.Errorf("took %s", d)
		}
	})
}

// TestBadMessages: a message that must not be believed fails the attempt with its code. What came before it
// is stored, what comes after it is not looked at.
func TestBadMessages(t *testing.T) {
	raw := func(typ uint16, payload ...byte) []byte { return protocol.AppendFrame(nil, typ, payload) }
	call := func(m *protocolpb.CallCommand) []byte { return frame(protocol.TypeCall, m) }
	for _, c := range []struct {
		name   string
		target *invocationpb.Target
		frame  []byte
		code   string
		text   string
	}{
		{"unknown control type", plain(), raw(0x55), codeProtocol, "unknown protocol.message code 0x55"},
		{"unknown command", plain(), raw(0x0415), codeProtocol, "0x415"},
		{"unknown notification", plain(), raw(0x8003), codeProtocol, "0x8003"},
		{"reserved", plain(), raw(0xFC00), codeProtocol, "0xfc00"},
		{"Start", plain(), raw(protocol.TypeStart), codeProtocol, "received unexpected message: StartMessage"},
		{"CommandAck", plain(), raw(protocol.TypeCommandAck), codeProtocol, "received unexpected message: CommandAckMessage"},
		{"run ack", plain(), raw(protocol.TypeProposeRunCompletionAck), codeProtocol, "received unexpected message"},
		{"notification", plain(), raw(protocol.TypeSignal), codeProtocol, "received unexpected message: SignalNotificationMessage"},
		{"Input", plain(), raw(protocol.TypeInput, 0x72, 0), codeProtocol, "received unexpected message: InputCommandMessage"},
		{"AwaitingOn below V7", plain(), raw(protocol.TypeAwaitingOn), codeProtocol, "received unexpected message"},
		{"proposal without result", plain(), raw(protocol.TypeProposeRunCompletion, 8, 1), codeProtocol, "malformed ProposeRunCompletionMessage"},
		{"Output without result", plain(), raw(protocol.TypeOutput), codeProtocol, "malformed OutputCommandMessage"},
		{"damaged", plain(), raw(protocol.TypeRun, 0xFF), codeProtocol, "malformed RunCommandMessage"},
		{"empty suspension", plain(), raw(protocol.TypeSuspension), codeProtocol, "awaits nothing"},
		{"End without Output", plain(), endFrame, codeProtocol, "without an output"},
		{"damaged Error", plain(), raw(protocol.TypeError, 0xFF), codeProtocol, "malformed ErrorMessage"},
		{"journal mismatch", plain(), errorFrame(&protocolpb.Error{Code: 570, Message: "m"}), codeJournalMismatch, "m"},
		{"violation seen by the SDK", plain(), errorFrame(&protocolpb.Error{Code: 571, Message: "m"}), codeProtocol, "m"},
		{"too large", plain(), protocol.AppendHeader(nil, protocol.TypeOutput, 0, 32<<20), codeTooLarge, "message size limit"},
		{"4 GiB", plain(), protocol.AppendHeader(nil, protocol.TypeOutput, 0, 1<<32-1), codeTooLarge, "message size limit"},
		{"state of a service", plain(), frame(protocol.TypeSetState, &protocolpb.SetStateCommand{Value: &protocolpb.Value{}}), codePrecondition, "doesn't have state access"},
		{"state of a service, read", plain(), frame(protocol.TypeGetLazyState, &protocolpb.GetLazyStateCommand{}), codePrecondition, "doesn't have state access"},
		{"state written by a shared handler", object("get", "k"), frame(protocol.TypeClearAllState, &protocolpb.ClearAllStateCommand{}), codePrecondition, "cannot write state"},
		{"promise of an object", object("add", "k"), frame(protocol.TypeGetPromise, &protocolpb.GetPromiseCommand{Key: "p"}), codePrecondition, "only Workflow services support it"},
		{"unknown service", plain(), call(&protocolpb.CallCommand{ServiceName: "X", HandlerName: "y"}), codeCalleeNotFound, "the service handler X/y was not found"},
		{"unknown handler", plain(), call(&protocolpb.CallCommand{ServiceName: "Svc", HandlerName: "y"}), codeCalleeNotFound, "Svc/y"},
		{"key for a service", plain(), call(&protocolpb.CallCommand{ServiceName: "Svc", HandlerName: "greet", Key: "k"}), codePrecondition, "no keys"},
		{"empty idempotency key", plain(), call(&protocolpb.CallCommand{ServiceName: "Svc", HandlerName: "greet", IdempotencyKey: ptrTo("")}), codePrecondition, "idempotency key is empty"},
		{"scope", plain(), call(&protocolpb.CallCommand{ServiceName: "Svc", HandlerName: "greet", Scope: ptrTo("s")}), codeFlowControl, "flow control"},
		{"attach to a bad id", plain(), frame(protocol.TypeAttachInvocation, &protocolpb.AttachInvocationCommand{Target: &protocolpb.AttachInvocationCommand_InvocationId{InvocationId: "x"}}), codePrecondition, "bad invocation id"},
		{"signal to a bad id", plain(), frame(protocol.TypeSendSignal, &protocolpb.SendSignalCommand{
			TargetInvocationId: "x", SignalId: &protocolpb.SendSignalCommand_Idx{Idx: 1}, Result: &protocolpb.SendSignalCommand_Void{Void: &protocolpb.Void{}},
		}), codeProtocol, "target invocation id"},
	} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, nil, func(v *service) {
				v.accept()
				v.replay()
				v.send(runFrame(1), c.frame, runFrame(2))
				v.end(eof)
			}, func(v *service) {
				v.accept()
				if _, entries := v.replay(); len(entries) != 2 {
					t.Errorf("%s: replayed %d entries, want the Input and the command before", c.name, len(entries))
				}
				v.send(output("x"), endFrame)
				v.end(eof)
			})
			id := invocationID(1)
			w.log.invoke(id, c.target, true)
			r := w.log.await(id, "ended")
			if len(r.events) != 1 || r.events[0].DocCode != c.code || !strings.Contains(r.events[0].Message, c.text) {
				t.Errorf("%s: events %v, want %s with %q", c.name, r.events, c.code, c.text)
				return
			}
			if e := r.events[0]; protocol.IsCommand(uint16(e.GetRelatedCommandType())) && e.GetRelatedCommandIndex() != 2 {
				t.Errorf("%s: related to command %d, want 2", c.name, e.GetRelatedCommandIndex())
			}
			if wantRelated := c.code == codePrecondition || c.code == codeCalleeNotFound; wantRelated && r.events[0].RelatedCommandIndex == nil {
				t.Errorf("%s: no related command", c.name)
			}
		})
	}
}

// TestFutureTooDeep: no attempt can do better, so the invocation is paused.
func TestFutureTooDeep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &protocolpb.Future{WaitingCompletions: []uint32{1}}
		for range 1500 {
			f = &protocolpb.Future{NestedFutures: []*protocolpb.Future{f}}
		}
		w := newWorld(t, v7, func(v *service) {
			v.accept()
			v.replay()
			v.send(sleepFrame(1), frame(protocol.TypeSuspension, &protocolpb.Suspension{AwaitingOn: f}))
			v.end(eof)
		})
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		r := w.log.await(id, "paused")
		if f := r.last.GetPaused().GetLastFailure(); f.GetDocCode() != codeFutureTooDeep || len(r.Entries) != 2 {
			t.Errorf("last failure %v, %d entries", f, len(r.Entries))
		}
	})
}

// TestErrorBehavior: what the service asks for is done, whatever the policy.
func TestErrorBehavior(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil,
			fails(&protocolpb.Error{Code: 409, Message: "stop", Behavior: protocolpb.ErrorBehavior_FAIL}),
			fails(&protocolpb.Error{Code: 500, Message: "hold", Behavior: protocolpb.ErrorBehavior_PAUSE}))
		a, b := invocationID(1), invocationID(2)
		w.log.invoke(a, plain(), true)
		if r := w.log.await(a, "failed"); r.result.Code != 409 || r.result.Message != "stop" {
			t.Errorf("failed with %v", r.result)
		}
		w.log.invoke(b, plain(), true)
		if r := w.log.await(b, "paused"); r.last.GetPaused().GetLastFailure().GetMessage() != "hold" {
			t.Errorf("paused with %v", r.last)
		}
	})
}

// TestAcks: commands are acknowledged when asked for and only after they were applied; run proposals are
// answered by an acknowledgement in V7 when asked for, otherwise by the completion.
func TestAcks(t *testing.T) {
	for _, version := range []uint32{6, 7} {
		bubble(t, func(t *testing.T) {
			id := invocationID(1)
			var w *world
			w = newWorld(t, func(c *Config, _ *Deps) { c.AnnounceV7 = version == 7 }, func(v *service) {
				v.accept()
				v.replay()
				w.log.hold(true)
				v.send(sleepFrame(1), withAck(runFrame(2)))
				synctest.Wait()
				v.s.mu.Lock()
				if v.read != len(v.s.up) {
					t.Error("an acknowledgement was sent before its command was applied")
				}
				v.s.mu.Unlock()
				w.log.hold(false)
				if f := v.expect(protocol.TypeCommandAck); !bytes.Equal(f.Payload, []byte{8, 2}) {
					t.Errorf("acknowledged %x", f.Payload)
				}
				v.send(withAck(proposeFrame(2, "r")), proposeFrame(3, "s"))
				if version == 7 {
					if f := v.expect(protocol.TypeProposeRunCompletionAck); !bytes.Equal(f.Payload, []byte{8, 2}) {
						t.Errorf("acknowledged %x", f.Payload)
					}
				} else {
					v.expect(protocol.TypeRunCompletion)
				}
				v.expect(protocol.TypeRunCompletion)
				v.send(output("x"), endFrame)
				v.halfClosed()
				v.end(eof)
			})
			w.log.invoke(id, plain(), true)
			if r := w.log.await(id, "ended"); r.ProtocolVersion != version {
				t.Errorf("version %d", r.ProtocolVersion)
			}
		})
	}
}

// TestCallee: who is called, and how long its result is kept, is settled before the command enters the log.
// TestAcksAskedForAgain: a service that proposes the result of one run over and over leaves one acknowledgement behind.
func TestAcksAskedForAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		var w *world
		w = newWorld(t, v7, func(v *service) {
			v.accept()
			v.replay()
			w.log.hold(true)
			for range 1000 {
				v.send(withAck(proposeFrame(2, "r")))
			}
			synctest.Wait()
			w.partition.mu.Lock()
			s := &w.partition.mu.invocations[id].attempt.send
			w.partition.mu.Unlock()
			s.mu.Lock()
			if n := len(s.runAcks); n != 1 {
				t.Errorf("%d acknowledgements are due", n)
			}
			s.mu.Unlock()
			w.log.hold(false)
			v.expect(protocol.TypeProposeRunCompletionAck)
			v.send(output("x"), endFrame)
			v.end(eof)
		})
		w.log.invoke(id, plain(), true)
		w.log.await(id, "ended")
	})
}

func TestCallee(t *testing.T) {
	bubble(t, func(t *testing.T) {
		random := ident.Random{ULID: [16]byte{1, 2, 3}, Bucket: 20}
		w := newWorld(t, func(_ *Config, d *Deps) { d.NewID = func(time.Time) ident.Random { return random } }, func(v *service) {
			v.accept()
			v.replay()
			v.send(
				frame(protocol.TypeCall, &protocolpb.CallCommand{ServiceName: "Svc", HandlerName: "greet", ResultCompletionId: 1}),
				frame(protocol.TypeOneWayCall, &protocolpb.OneWayCallCommand{ServiceName: "Obj", HandlerName: "get", Key: "k", IdempotencyKey: ptrTo("i")}),
				frame(protocol.TypeCall, &protocolpb.CallCommand{ServiceName: "Wf", HandlerName: "run", Key: "w1"}),
				output("x"), endFrame)
			v.end(eof)
		})
		d := deployment()
		d.Services[0].Overrides.JournalRetention = ptrTo(time.Hour)
		d.Services[1].Overrides.IdempotencyRetention = ptrTo(time.Minute)
		d.Services[2].Overrides.WorkflowRetention = ptrTo(48 * time.Hour)
		w.schema.set(d)
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		w.log.await(id, "ended")
		var got []*invocationpb.Effect_Callee
		for _, e := range w.log.proposed[0].effects {
			if c := e.GetCommand().GetCallee(); c != nil {
				got = append(got, c)
			}
		}
		want := []struct {
			t                   ident.Target
			typ, handler        uint32
			completion, journal time.Duration
		}{
			{ident.Target{Service: "Svc", Handler: "greet"}, 1, 1, time.Hour, time.Hour},
			{ident.Target{Service: "Obj", Handler: "get", Key: "k", Keyed: true, IdempotencyKey: ptrTo("i")}, 2, 1, time.Minute, time.Minute},
			{ident.Target{Service: "Wf", Handler: "run", Key: "w1", Keyed: true, WorkflowRun: true}, 3, 3, 48 * time.Hour, 24 * time.Hour},
		}
		if len(got) != len(want) {
			t.Fatalf("%d callees", len(got))
		}
		for i, x := range want {
			id := ident.Invocation(x.t, random)
			g := got[i]
			if !bytes.Equal(g.InvocationId, id[:]) || g.Target.Service != x.t.Service || g.Target.Handler != x.t.Handler || g.Target.Key != x.t.Key ||
				g.Target.ServiceType != x.typ || g.Target.HandlerType != x.handler ||
				g.CompletionRetentionMs != uint64(x.completion.Milliseconds()) || g.JournalRetentionMs != uint64(x.journal.Milliseconds()) {
				t.Errorf("callee %d is %v", i, g)
			}
		}
	})
}

// goroutines counts them. One that is just ending may still be counted, also after synctest.Wait, unless the world was stopped.
func goroutines() int {
	runtime.ReadMemStats(new(runtime.MemStats)) // stops the world
	return runtime.NumGoroutine()
}

// TestIdleGoroutines: goroutines are used again, no more of them wait than is allowed, and Close (called when the world
// ends) ends them.
func TestIdleGoroutines(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const burst = 3 * maxIdle
		together := make(chan struct{})
		var scripts []func(*service)
		for range burst {
			scripts = append(scripts, func(v *service) { <-together; echo(v) })
		}
		w := newWorld(t, nil, append(scripts, echo)...)
		for n := range byte(burst) {
			w.log.invoke(invocationID(n+1), plain(), true)
		}
		synctest.Wait()
		if n := w.partition.idle.Load(); n != 0 {
			t.Errorf("%d goroutines are idle during the burst", n)
		}
		close(together)
		for n := range byte(burst) {
			w.log.await(invocationID(n+1), "ended")
		}
		synctest.Wait()
		if n := w.partition.idle.Load(); n != maxIdle {
			t.Errorf("%d goroutines are idle after the burst, want %d", n, maxIdle)
		}
		before := goroutines()
		w.log.invoke(invocationID(burst+1), plain(), true)
		w.log.await(invocationID(burst+1), "ended")
		synctest.Wait()
		if n := w.partition.idle.Load(); n != maxIdle {
			t.Errorf("%d goroutines are idle after one more attempt, want %d", n, maxIdle)
		}
		if after := goroutines(); after > before {
			t.Errorf("%d goroutines after one more attempt, %d before", after, before)
		}
	})
}

// TestConcurrencyLimit: no more attempts than slots; first come, first served; a slot is free while its
// invocation is suspended or waits long, and kept for a short wait.
func TestConcurrencyLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		order := make(chan ident.InvocationID, 10)
		note := func(v *service) {
			start, _ := v.replay()
			id, _ := ident.InvocationIDFromBytes(startOf(t, start).Id)
			order <- id
			v.accept()
		}
		ends := func(frames ...[]byte) func(*service) {
			return func(v *service) { note(v); v.send(frames...); v.end(eof) }
		}
		delayed := func(ms uint64) []byte { return errorFrame(&protocolpb.Error{Code: 500, NextRetryDelay: &ms}) }
		w := newWorld(t, func(c *Config, _ *Deps) { c.ConcurrencyLimit = 1 },
			ends(delayed(1000)),                  // 1 fails and keeps its slot
			ends(delayed(1001)),                  // 1 fails and gives it up
			ends(sleepFrame(1), suspendFrame(1)), // 2 suspends
			ends(output("x"), endFrame),          // 3
			ends(output("x"), endFrame))          // 1
		for n := byte(1); n <= 3; n++ {
			w.log.invoke(invocationID(n), plain(), true)
		}
		for _, n := range []byte{1, 1, 2, 3, 1} {
			if id := <-order; id != invocationID(n) {
				t.Errorf("invocation %d was attempted, want %d", id[0], n)
			}
		}
		w.log.await(invocationID(1), "ended")
	})
}

// TestMemory: an attempt that has more to send than it may is put back, and gets everything at its next
// attempt. It is neither a failure nor a retry.
func TestMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		big := protocol.SignalName("s", &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: make([]byte, 30<<10)}})
		var w *world
		w = newWorld(t, func(c *Config, _ *Deps) { c.InvocationMemoryLimit = 64 << 10 }, func(v *service) {
			v.accept()
			v.replay()
			v.s.mu.Lock()
			v.s.blocked = true
			v.s.mu.Unlock()
			for range 5 {
				w.log.notify(id, protocol.TypeSignal, big)
			}
			v.canceled()
		}, func(v *service) {
			v.accept()
			start, entries := v.replay()
			if len(entries) != 6 || startOf(t, start).RetryCountSinceLastStoredEntry != 0 {
				t.Errorf("replayed %d entries, want 6", len(entries))
			}
			v.send(output("x"), endFrame)
			v.end(eof)
		})
		w.log.invoke(id, plain(), true)
		if r := w.log.await(id, "ended"); len(r.events) != 0 {
			t.Errorf("events %v", r.events)
		}
	})
}

// TestMemoryPool: the node's budget bounds journals and received messages of all attempts together.
func TestMemoryPool(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second := invocationID(1), invocationID(2)
		proceed := make(chan struct{})
		w := newWorld(t, func(c *Config, _ *Deps) {
			c.MessageSizeLimit, c.MessageSizeWarning, c.MemoryLimit = 1<<20, 1<<19, 1<<20
		}, func(v *service) {
			v.accept()
			v.replay()
			f := output(strings.Repeat("x", 900<<10))
			v.send(f[:len(f)-1]) // the attempt holds a buffer for it
			<-proceed
			v.send(f[len(f)-1:], endFrame)
			v.end(eof)
		}, echo)
		w.log.invoke(first, plain(), true)
		synctest.Wait()
		w.log.invoke(second, plain(), false, func(j *Journal) { j.Entries[0].Raw = append([]byte{0x62, 0x80, 0x80, 0x10}, make([]byte, 1<<18)...) })
		elapse(5500 * time.Millisecond)
		if s, _ := w.partition.StatusOf(second); s.InFlight || s.RetryCount < 2 || s.LastFailure != nil {
			t.Errorf("the second invocation: %+v", s)
		}
		close(proceed)
		w.log.await(first, "ended")
		w.log.await(second, "ended")
	})
}

// TestReadingIsBounded: a journal is read only as far as there is memory for it; the others go on first.
func TestReadingIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second := invocationID(1), invocationID(2)
		proceed := make(chan struct{})
		w := newWorld(t, func(c *Config, _ *Deps) {
			c.MessageSizeLimit, c.MessageSizeWarning, c.MemoryLimit = 1<<20, 1<<19, 1<<20
		}, func(v *service) {
			v.replay()
			<-proceed
			v.accept()
			v.send(output("x"), endFrame)
			v.end(eof)
		}, echo)
		big := func(j *Journal) {
			for range 3 {
				j.Entries = append(j.Entries, sleepDone(1))
				j.Entries[len(j.Entries)-1].Raw = make([]byte, 500<<10)
			}
		}
		w.schema.set(lambdaDeployment()) // what is sent stays reserved until the answer
		w.log.invoke(first, plain(), false, big)
		synctest.Wait()
		if n := w.pool.memory.used.Load(); n < 1500<<10 {
			t.Fatalf("%d bytes are reserved: a journal that is bigger than the budget is taken when there is no other", n)
		}
		w.schema.set(deployment())
		w.log.invoke(second, plain(), false, big)
		synctest.Wait()
		w.log.mu.Lock()
		unread := w.log.unread
		w.log.mu.Unlock()
		if s, _ := w.partition.StatusOf(second); unread != 1 || s.InFlight || s.LastFailure != nil {
			t.Errorf("the second journal was given up %d times while it was read: %+v", unread, s)
		}
		close(proceed)
		w.log.await(first, "ended")
		w.log.await(second, "ended")
	})
}

// TestJournalIsNotKept: an attempt that waits holds nothing of the journal that it sent.
func TestJournalIsNotKept(t *testing.T) {
	for _, size := range []int{10, 2 * inlineReplay} { // written by the attempt itself, and by another goroutine
		bubble(t, func(t *testing.T) {
			var journal weak.Pointer[Journal]
			proceed := make(chan struct{})
			w := newWorld(t, nil, func(v *service) {
				v.accept()
				v.replay()
				<-proceed
				v.send(output("x"), endFrame)
				v.end(eof)
			})
			w.log.onRead = func(j *Journal) { journal = weak.Make(j) }
			id := invocationID(1)
			w.log.invoke(id, plain(), false, func(j *Journal) { j.Entries[0].Raw = make([]byte, size) })
			synctest.Wait()
			runtime.GC()
			if journal.Value() != nil {
				t.Errorf("the journal of %d bytes is still there", size)
			}
			if n := w.pool.memory.used.Load(); n != 0 {
				t.Errorf("%d bytes are reserved for it", n)
			}
			close(proceed)
			w.log.await(id, "ended")
		})
	}
}

// TestEagerStateForLambda: no more state goes along than fits into a call with the journal.
func TestEagerStateForLambda(t *testing.T) {
	max := transport.Endpoint{Function: "f"}.MaxBody()
	if max < 4<<20 || max > transport.LambdaPayload*3/4 {
		t.Fatalf("bodies of %d bytes", max)
	}
	mb := make([]byte, 1_200_000)
	state := []StateEntry{{[]byte("a"), mb}, {[]byte("b"), nil}, {[]byte("c"), mb}, {[]byte("d"), mb}, {[]byte("e"), mb}, {[]byte("f"), nil}}
	for _, c := range []struct {
		name        string
		input, keys int
	}{
		{"most", 100, 4}, {"some", 2 << 20, 3}, {"what is small", 4 << 20, 0}, {"none: the journal does not fit by itself", 5 << 20, 0},
	} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, nil, func(v *service) {
				first, _ := v.replay()
				if s := startOf(t, first); len(s.StateMap) != c.keys || !s.PartialState {
					t.Errorf("%s: %d keys, partial %v, want %d keys", c.name, len(s.StateMap), s.PartialState, c.keys)
				}
				v.s.mu.Lock()
				n := len(v.s.up)
				v.s.mu.Unlock()
				if c.input < max && n > max {
					t.Errorf("%s: the request has %d bytes, more than %d", c.name, n, max)
				}
				v.accept()
				v.send(output("x"), endFrame)
				v.end(eof)
			})
			w.schema.set(lambdaDeployment())
			id := invocationID(1)
			w.log.invoke(id, object("add", "k"), false, func(j *Journal) {
				j.State, j.PartialState = state, false
				j.Entries[0].Raw = make([]byte, c.input)
			})
			w.log.await(id, "ended")
		})
	}
}

// TestMemoryOfCalls: what a transport that makes one call keeps of the request is reserved until the call has ended.
func TestMemoryOfCalls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		proceed := make(chan struct{})
		w := newWorld(t, nil, func(v *service) {
			v.replay()
			v.halfClosed()
			<-proceed
			v.accept()
			v.send(output("x"), endFrame)
			v.end(eof)
		})
		w.schema.set(lambdaDeployment())
		id := invocationID(1)
		const size = 300 << 10
		w.log.invoke(id, plain(), false, func(j *Journal) { j.Entries[0].Raw = make([]byte, size) })
		synctest.Wait()
		if n := w.pool.memory.used.Load(); n < size*4/3 {
			t.Errorf("%d bytes are reserved during the call, want those of the request in base64", n)
		}
		close(proceed)
		w.log.await(id, "ended")
	})
}

func lambdaDeployment() *schema.Deployment {
	d := deployment()
	d.ProtocolType = schema.RequestResponse
	d.Address = schema.Address{Lambda: &schema.LambdaAddress{ARN: "arn:aws:lambda:eu-central-1:123456789012:function:f:1"}}
	return d
}

// TestBigMessages: a message that is bigger than any buffer arrives as it was sent, wherever reads end.
func TestBigMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		payload := strings.Repeat("x", 5<<20)
		w := newWorld(t, nil, func(v *service) {
			v.accept()
			v.replay()
			v.send(runFrame(1))
			f := output(payload)
			for len(f) > 0 { // in pieces, so that frames do not end where reads end
				n := min(len(f), 100_003)
				v.send(f[:n])
				f = f[n:]
			}
			v.send(endFrame)
			v.end(eof)
		})
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		r := w.log.await(id, "ended")
		var m protocolpb.OutputCommand
		if err := m.UnmarshalVT(r.Entries[2].Raw); err != nil || string(m.GetValue().GetContent()) != payload {
			t.Errorf("the output did not arrive as it was sent: %v", err)
		}
	})
}

// TestLongReplay: a journal that is longer than a flow-control window is sent while the answer is read
// already; an error status ends it although the service takes nothing.
func TestLongReplay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		var w *world
		w = newWorld(t, nil, func(v *service) {
			v.s.mu.Lock()
			v.s.blocked = true
			v.s.mu.Unlock()
			v.respond(404)
			v.canceled()
		}, func(v *service) {
			v.accept()
			_, entries := v.replay()
			r := w.log.row(id)
			if len(entries) != len(r.Entries) {
				t.Fatalf("replayed %d of %d entries", len(entries), len(r.Entries))
			}
			for i, e := range entries {
				if e.Type != r.Entries[i].Type || !bytes.Equal(e.Payload, r.Entries[i].Raw) {
					t.Errorf("entry %d differs", i)
				}
			}
			v.send(output("x"), endFrame)
			v.halfClosed()
			v.end(eof)
		})
		w.log.invoke(id, plain(), false, func(j *Journal) {
			for i := range 200 {
				j.Entries = append(j.Entries, Entry{Type: protocol.TypeRun, Raw: bytes.Repeat([]byte{byte(i)}, i*100)})
			}
			j.Entries = append(j.Entries, Entry{Type: protocol.TypeRun, Raw: make([]byte, 300<<10)}, Entry{Type: protocol.TypeRun})
		})
		if r := w.log.await(id, "ended"); len(r.events) != 1 || r.events[0].DocCode != codeProtocol {
			t.Errorf("events %v", r.events)
		}
	})
}

// TestNoDeployment: what cannot be sent anywhere is retried, and works as soon as it can.
func TestNoDeployment(t *testing.T) {
	for _, c := range []struct {
		name   string
		broken func(*schema.Deployment) []*schema.Deployment
		change func(*Journal)
		code   string
	}{
		{"unknown service", func(*schema.Deployment) []*schema.Deployment { return nil }, nil, codeNoDeployment},
		{"pinned deployment removed", func(d *schema.Deployment) []*schema.Deployment { d.ID[0]++; return []*schema.Deployment{d} },
			func(j *Journal) { j.Deployment, j.ProtocolVersion = testDeployment, 6 }, codeNoDeployment},
		{"no common version", func(d *schema.Deployment) []*schema.Deployment {
			d.MinProtocol, d.MaxProtocol = 7, 9
			return []*schema.Deployment{d}
		}, nil, codeNoCommonVersion},
		{"old deployment", func(d *schema.Deployment) []*schema.Deployment {
			d.MinProtocol, d.MaxProtocol = 1, 4
			return []*schema.Deployment{d}
		}, nil, codeNoCommonVersion},
		{"pinned version", func(d *schema.Deployment) []*schema.Deployment { return []*schema.Deployment{d} },
			func(j *Journal) { j.Deployment, j.ProtocolVersion = testDeployment, 4 }, codeVersionGone},
	} {
		bubble(t, func(t *testing.T) {
			scripts := []func(*service){func(v *service) {
				v.accept()
				start, _ := v.replay()
				if n := startOf(t, start).RetryCountSinceLastStoredEntry; n != 0 {
					t.Errorf("%s: the service sees %d retries", c.name, n)
				}
				v.send(output("x"), endFrame)
				v.end(eof)
			}}
			if c.code == codeVersionGone {
				scripts = nil
			}
			w := newWorld(t, nil, scripts...)
			w.schema.set(c.broken(deployment())...)
			id := invocationID(1)
			if c.change == nil {
				c.change = func(*Journal) {}
			}
			w.log.invoke(id, plain(), false, c.change)
			elapse(10 * time.Second)
			if s, _ := w.partition.StatusOf(id); s.LastFailure.GetDocCode() != c.code || s.RetryCount < 2 {
				t.Errorf("%s: status %+v, want %s", c.name, s, c.code)
			}
			if c.code == codeVersionGone {
				return
			}
			w.schema.set(deployment())
			w.log.await(id, "ended")
		})
	}
}

func TestPinnedToAnOlderDeployment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil, func(v *service) {
			if v.s.endpoint.Authority != "svc:9080" {
				t.Errorf("sent to %s", v.s.endpoint)
			}
			if ct := v.s.request.Header[0].Value; ct != "application/vnd.restate.invocation.v7" {
				t.Errorf("content type %s", ct)
			}
			echo(v)
		})
		newer := deployment()
		newer.ID[0]++
		newer.Address.HTTP.URI = "http://newer"
		for i := range newer.Services {
			newer.Services[i].Revision++
		}
		w.schema.set(deployment(), newer)
		id := invocationID(1)
		// Pinned to V7 by a leader that announced it: it stays there, although this one does not.
		w.log.invoke(id, plain(), false, func(j *Journal) { j.Deployment, j.ProtocolVersion = testDeployment, 7 })
		w.log.await(id, "ended")
		if got, want := w.log.kinds(), [][]string{{"OutputCommandMessage", "end"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("proposed %v, want %v", got, want)
		}
	})
}

// replaced is a schema that gets a new deployment when it is asked for the next time, right behind the answer.
type replaced struct {
	*testSchema
	armed atomic.Bool
	by    *schema.Deployment
}

func (r *replaced) Current() *schema.Schema {
	s := r.testSchema.Current()
	if r.armed.CompareAndSwap(true, false) {
		r.set(deployment(), r.by)
	}
	return s
}

// Who removes a deployment asks for the attempts that go there, once it is no longer the latest. An attempt that has picked it but
// not said so would go to a deployment that is gone.
func TestAttemptDoesNotKeepADeploymentThatWasReplacedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &replaced{by: deployment()}
		r.by.ID[0]++
		r.by.CreatedMs++
		r.by.Address.HTTP.URI = "http://newer"
		for i := range r.by.Services {
			r.by.Services[i].Revision++
		}
		w := newWorld(t, func(_ *Config, d *Deps) { r.testSchema = d.Schema.(*testSchema); d.Schema = r }, func(v *service) {
			if v.s.endpoint.Authority != "newer" {
				t.Errorf("sent to %s", v.s.endpoint)
			}
			echo(v)
		})
		w.log.onRead = func(*Journal) { r.armed.Store(true) }
		id := invocationID(1)
		w.log.invoke(id, plain(), false)
		w.log.await(id, "ended")
		if got := w.log.rows[id].Deployment; got != r.by.ID || r.armed.Load() {
			t.Errorf("pinned to %s, want %s", got, r.by.ID)
		}
	})
}

type testSigner struct{}

func (testSigner) Headers(dst []transport.Field, _ time.Time, path string, subject *string) []transport.Field {
	v := path
	if subject != nil {
		v += " for " + *subject
	}
	return append(dst, transport.Field{Name: "x-signed", Value: v})
}

func TestRequestHeaders(t *testing.T) {
	for _, c := range []struct {
		target *invocationpb.Target
		want   []string
	}{
		{plain(), []string{
			"content-type=application/vnd.restate.invocation.v6", "accept=application/vnd.restate.invocation.v6",
			"x-restate-invocation-id=" + invocationID(1).String(),
			"traceparent=00-0123456789abcdef0123456789abcdef-<span>-01", "tracestate=",
			"x-signed=/invoke/Svc/greet", "x-restate-cluster-name=localcluster", "authorization=secret", "b=2",
		}},
		{object("add", "key /é"), []string{
			"content-type=application/vnd.restate.invocation.v6", "accept=application/vnd.restate.invocation.v6",
			"x-restate-invocation-id=" + invocationID(1).String(), "x-restate-service-key=key%20%2F%C3%A9",
			"traceparent=00-0123456789abcdef0123456789abcdef-<span>-01", "tracestate=",
			"x-signed=/invoke/Obj/add for key /é", "x-restate-cluster-name=localcluster", "authorization=secret", "b=2",
		}},
	} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, func(cfg *Config, d *Deps) {
				d.Tracer, d.Signer = tracing.With(tracing.Config{}, tracetest.NewSpanRecorder()), testSigner{}
				cfg.AdditionalHeaders = append(cfg.AdditionalHeaders, transport.Field{Name: "b", Value: "1"})
				d.NewID = func(time.Time) ident.Random {
					return ident.Random{ULID: [16]byte{8: 8, 9: 9, 10: 10, 11: 11, 12: 12, 13: 13, 14: 14, 15: 15}}
				}
			}, func(v *service) {
				var got []string
				for _, f := range v.s.request.Header {
					if f.Name == "traceparent" && len(f.Value) == 55 && f.Value[36:52] != "0123456789abcdef" {
						f.Value = f.Value[:36] + "<span>" + f.Value[52:] // a new one for each attempt
					}
					got = append(got, f.Name+"="+f.Value)
				}
				if !reflect.DeepEqual(got, c.want) {
					t.Errorf("headers\n%q\nwant\n%q", got, c.want)
				}
				if v.s.request.Method != "POST" || v.s.endpoint.Prefix != "/p" {
					t.Errorf("%s to %s", v.s.request.Method, v.s.endpoint)
				}
				echo(v)
			})
			id := invocationID(1)
			w.log.invoke(id, c.target, false, func(j *Journal) { j.TraceParent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01" })
			w.log.await(id, "ended")
		})
	}
}

// TestEagerState: what goes into Start for whom.
func TestEagerState(t *testing.T) {
	state := []StateEntry{{[]byte("a"), []byte("1")}, {[]byte("b"), nil}}
	for _, c := range []struct {
		name    string
		target  *invocationpb.Target
		partial bool
		limit   int
		keys    int
		want    bool
	}{
		{"service", plain(), false, 100, 0, true},
		{"object", object("add", "k"), false, 100, 2, false},
		{"object over the limit", object("add", "k"), true, 100, 2, true},
		{"shared handler", object("get", "k"), false, 100, 2, false},
		{"lazy handler", object("lazy", "k"), false, 100, 0, true},
		{"switched off", object("add", "k"), false, 0, 0, true},
	} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, func(cfg *Config, _ *Deps) { cfg.EagerStateLimit = c.limit }, func(v *service) {
				v.accept()
				first, _ := v.replay()
				s := startOf(t, first)
				if len(s.StateMap) != c.keys || s.PartialState != c.want || s.Key != c.target.Key {
					t.Errorf("%s: %d keys, partial %v, key %q", c.name, len(s.StateMap), s.PartialState, s.Key)
				}
				v.send(output("x"), endFrame)
				v.end(eof)
			})
			id := invocationID(1)
			w.log.invoke(id, c.target, false, func(j *Journal) { j.State, j.PartialState = state, c.partial })
			w.log.await(id, "ended")
		})
	}
}

// TestLazyStateIsNotRead: no attempt of a lazy handler reads the state, pinned or not.
func TestLazyStateIsNotRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil, fails(&protocolpb.Error{Code: 500}), echo)
		id := invocationID(1)
		w.log.invoke(id, object("lazy", "k"), false)
		w.log.await(id, "ended")
		if want := []int{0, 0}; !reflect.DeepEqual(w.log.limits, want) {
			t.Errorf("state was read up to %v, want %v", w.log.limits, want)
		}
	})
}

// TestAfterTheLastMessage: what a service still sends is ignored; one that does not end is reset.
func TestAfterTheLastMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		start := time.Now()
		done := make(chan struct{})
		w := newWorld(t, nil, func(v *service) {
			defer close(done)
			v.accept()
			v.replay()
			v.send(output("x"), endFrame, runFrame(1), errorFrame(&protocolpb.Error{Code: 500}))
			v.halfClosed()
			v.send(runFrame(2))
			v.canceled()
			if d := time.Since(start); d != 5*time.Second {
				t.Errorf("reset after %s, want the drain timeout", d)
			}
		})
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		if r := w.log.await(id, "ended"); len(r.Entries) != 2 {
			t.Errorf("%d entries", len(r.Entries))
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("the end took %s", d)
		}
		<-done
	})
}

// TestManyUnendedResponses: a service that ends no response is not waited for by more attempts than there are slots.
func TestManyUnendedResponses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		unended := func(want time.Duration) func(*service) {
			return func(v *service) {
				start := time.Now()
				v.accept()
				v.replay()
				v.send(errorFrame(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(100))}))
				v.halfClosed()
				v.canceled()
				if d := time.Since(start); d != want {
					t.Errorf("reset after %s, want %s", d, want)
				}
			}
		}
		w := newWorld(t, func(c *Config, _ *Deps) { c.ConcurrencyLimit = 1 }, unended(5*time.Second), unended(0), unended(0), echo)
		w.log.invoke(invocationID(1), plain(), true)
		w.log.await(invocationID(1), "ended")
	})
}

// TestClose: attempts in all phases end without an effect, and nothing is left.
func TestClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config, _ *Deps) { c.ConcurrencyLimit = 3 },
			func(v *service) { v.accept(); v.replay(); v.canceled() },
			fails(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(900))}),
			func(v *service) { v.canceled() })
		for n := byte(1); n <= 5; n++ {
			w.log.invoke(invocationID(n), plain(), true)
		}
		synctest.Wait()
		w.log.close()
		w.partition.Close()
		w.partition.Close()
		w.partition.Invoke(invocationID(9), 1, "Svc", ident.DeploymentID{}, nil)
		w.partition.Status(func(s Status) bool { t.Errorf("left: %+v", s); return true })
		if got, want := w.log.kinds(), [][]string{{"attempt failed"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("proposed %v, want %v", got, want)
		}
	})
}

// TestProposalRefused: an attempt that cannot write ends silently, and the invocation is not lost if the
// partition is led on.
func TestProposalRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil, func(v *service) {
			v.accept()
			v.replay()
			v.send(output("x"), endFrame)
			v.end(eof)
		}, func(v *service) {
			v.accept()
			v.replay()
			v.send(runFrame(1))
			v.canceled()
		}, echo)
		w.log.refuseWith(errors.New("the log is full"))
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		elapse(1500 * time.Millisecond)
		if s, ok := w.partition.StatusOf(id); !ok || s.RetryCount != 2 {
			t.Errorf("status %+v", s)
		}
		w.log.refuseWith(nil)
		w.log.await(id, "ended")
		if got, want := w.log.kinds(), [][]string{{"pinned", "OutputCommandMessage", "end"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("proposed %v, want %v", got, want)
		}
	})
}

func TestUnreadableJournal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, nil, echo)
		w.log.readErr = errors.New("disk")
		id := invocationID(1)
		w.log.invoke(id, plain(), false)
		synctest.Wait()
		w.log.mu.Lock()
		w.log.readErr = nil
		w.log.mu.Unlock()
		if r := w.log.await(id, "ended"); len(r.events) != 1 || r.events[0].DocCode != codeInternal {
			t.Errorf("events %v", r.events)
		}
	})
}

// TestStatus: what introspection sees.
func TestStatus(t *testing.T) {
	bubble(t, func(t *testing.T) {
		id := invocationID(1)
		var w *world
		w = newWorld(t, v7,
			fails(&protocolpb.Error{Code: 500, Message: "m", Stacktrace: "at x", RelatedCommandIndex: ptrTo(uint32(3)), RelatedCommandName: ptrTo("n"), RelatedCommandType: ptrTo(uint32(0x0411))}),
			func(v *service) {
				v.accept()
				v.replay()
				v.send(sleepFrame(1), frame(protocol.TypeAwaitingOn, &protocolpb.AwaitingOn{AwaitingOn: &protocolpb.Future{
					CombinatorType: protocolpb.CombinatorType_FIRST_COMPLETED, WaitingSignals: []uint32{1},
					NestedFutures: []*protocolpb.Future{{WaitingCompletions: []uint32{1}}},
				}}))
				synctest.Wait()
				s, _ := w.partition.StatusOf(id)
				if !s.InFlight || s.RetryCount != 2 || s.LastServer != "test-sdk/1.0" || s.LastDeployment != testDeployment || s.AwaitingOn.GetSignals()[0] != 1 {
					t.Errorf("running: %+v", s)
				}
				w.log.notify(id, protocol.TypeSignal, protocol.SignalIndex(17, nil))
				if s, _ := w.partition.StatusOf(id); s.AwaitingOn == nil {
					t.Error("something else arrived")
				}
				w.log.notify(id, protocol.TypeSleepCompletion, sleepDone(1).Raw)
				if s, _ := w.partition.StatusOf(id); s.AwaitingOn != nil {
					t.Error("what was awaited arrived")
				}
				v.send(output("x"), endFrame)
				v.end(eof)
			})
		start := time.Now()
		w.log.invoke(id, plain(), true)
		synctest.Wait()
		var all []Status
		w.partition.Status(func(s Status) bool { all = append(all, s); return true })
		if len(all) != 1 {
			t.Fatalf("%d invocations", len(all))
		}
		s := all[0]
		if s.InFlight || s.Queued || s.RetryCount != 1 || !s.LastStart.Equal(start) || !s.NextRetry.Equal(start.Add(100*time.Millisecond)) ||
			s.FailureText() != "[500 Internal] m\nat x" || s.LastFailure.DocCode != codeHandler || s.LastFailure.GetRelatedCommandIndex() != 3 {
			t.Errorf("waiting: %+v, %q", s, s.FailureText())
		}
		w.log.await(id, "ended")
	})
}

// TestCutEverywhere cuts each captured exchange after each frame of the service. The attempt fails, everything
// received before is stored, nothing is stored twice, and the next attempt is given all of it.
func TestCutEverywhere(t *testing.T) {
	for _, v := range loadVectors(t) {
		steps := v.steps(t)
		known := int(startOf(t, steps[0].Frame).KnownEntries)
		var sent []step
		for _, s := range steps[1+known:] {
			if !s.fromServer && s.Type != protocol.TypeEnd && s.Type != protocol.TypeSuspension && s.Type != protocol.TypeError {
				sent = append(sent, s)
			}
		}
		for cut := range len(sent) + 1 {
			t.Run(fmt.Sprint(v.Name, "/", cut), func(t *testing.T) {
				bubble(t, func(t *testing.T) { cutVector(t, &v, steps, known, sent[:cut]) })
			})
		}
	}
}

func cutVector(t *testing.T, v *vector, steps []step, known int, sent []step) {
	start := startOf(t, steps[0].Frame)
	id, _ := ident.InvocationIDFromBytes(start.Id)
	target := vectorTarget(t, v, start)
	var want []Entry
	for _, s := range steps[1 : 1+known] {
		want = append(want, Entry{s.Type, s.Payload})
	}
	w := newWorld(t, v7, func(svc *service) {
		svc.accept()
		svc.replay()
		for _, s := range sent {
			svc.send(s.raw)
			switch {
			case protocol.IsCommand(s.Type):
				want = append(want, Entry{s.Type, s.Payload})
			case s.Type == protocol.TypeProposeRunCompletion:
				n, value, failed, _ := protocol.RunProposal(s.Payload)
				want = append(want, Entry{protocol.TypeRunCompletion, protocol.Completion(n, runEffect(n, value, failed).GetRun().Result)})
			}
		}
		svc.end(&transport.Error{Kind: transport.Reset, Err: errors.New("cut")})
	}, func(svc *service) {
		svc.accept()
		_, entries := svc.replay()
		var got []Entry
		for _, e := range entries {
			got = append(got, Entry{e.Type, e.Payload})
		}
		if !reflect.DeepEqual(normal(got), normal(want)) {
			t.Errorf("replayed %d entries, want %d", len(got), len(want))
		}
		svc.send(output("x"), endFrame)
		svc.end(eof)
	})
	w.schema.set(vectorDeployment(t, v, steps, target, false))
	w.log.invoke(id, target, false, func(j *Journal) { j.Entries = append([]Entry(nil), want...) })
	r := w.log.await(id, "ended")
	if len(r.events) != 1 || r.events[0].DocCode != codeNetwork {
		t.Errorf("events %v", r.events)
	}
}

// normal makes empty and absent payloads the same.
func normal(es []Entry) string {
	b, _ := json.Marshal(es)
	return strings.ReplaceAll(string(b), "null", `""`)
}
