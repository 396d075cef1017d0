package invokers

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/h2"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
)

// sdkService runs handlers of the Go SDK behind HTTP/2 in clear text.
func sdkService(t *testing.T, bidi bool, failures *atomic.Int32) string {
	def := restate.NewService("Svc").
		Handler("echo", restate.NewServiceHandler(func(_ restate.Context, in string) (string, error) { return "Hello, " + in, nil })).
		Handler("steps", restate.NewServiceHandler(func(ctx restate.Context, in string) (string, error) {
			a, err := restate.Run(ctx, func(restate.RunContext) (string, error) { return in + "1", nil }, restate.WithName("first"))
			if err != nil {
				return "", err
			}
			if err := restate.Sleep(ctx, time.Hour); err != nil {
				return "", err
			}
			return restate.Run(ctx, func(restate.RunContext) (string, error) { return a + "2", nil }, restate.WithName("second"))
		})).
		Handler("terminal", restate.NewServiceHandler(func(restate.Context, string) (string, error) {
			return "", restate.TerminalErrorf("over")
		})).
		Handler("flaky", restate.NewServiceHandler(func(ctx restate.Context, in string) (string, error) {
			a, err := restate.Run(ctx, func(restate.RunContext) (string, error) { return in + "1", nil })
			if err == nil && failures.Add(-1) >= 0 {
				return "", errors.New("not yet")
			}
			return a, err
		}))
	h, err := server.NewRestate().WithLogger(slog.DiscardHandler, false).Bidirectional(bidi).Bind(def).Handler()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func sdkDeployment(url string, bidi bool, inactivity time.Duration) *schema.Deployment {
	d := &schema.Deployment{
		ID: testDeployment, ProtocolType: schema.BidiStream, MinProtocol: 5, MaxProtocol: 7,
		Address: schema.Address{HTTP: &schema.HTTPAddress{URI: url, Version: schema.HTTP2}},
		Services: []schema.ServiceRevision{{Name: "Svc", Type: schema.Service, Revision: 1, Overrides: schema.Overrides{
			InactivityTimeout: &inactivity, Retry: schema.RetryOverrides{InitialInterval: ptrTo(time.Millisecond)},
		}}},
	}
	if !bidi {
		d.ProtocolType = schema.RequestResponse
	}
	for _, h := range []string{"echo", "steps", "terminal", "flaky"} {
		d.Services[0].Handlers = append(d.Services[0].Handlers, schema.Handler{Name: h, Type: schema.Shared})
	}
	return d
}

// TestGoSDK runs an unmodified SDK against the invoker over a real transport, live and by suspension, in each
// version of the protocol that it speaks.
func TestGoSDK(t *testing.T) {
	for _, bidi := range []bool{true, false} {
		for _, version := range []uint32{5, 6, 7} {
			t.Run(fmt.Sprintf("bidi=%v/v%d", bidi, version), func(t *testing.T) { runSDK(t, bidi, version) })
		}
	}
}

func runSDK(t *testing.T, bidi bool, version uint32) {
	var failures atomic.Int32
	failures.Store(3)
	url := sdkService(t, bidi, &failures)
	client, err := h2.New(h2.DefaultConfig(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t, func(c *Config, d *Deps) { c.AnnounceV7, d.Transport = version == 7, client })
	d := sdkDeployment(url, bidi, time.Hour) // nothing is suspended because the machine is busy
	d.MaxProtocol = version
	w.schema.set(d)

	call := func(n byte, handler string) ident.InvocationID {
		id := invocationID(n)
		target := plain()
		target.Handler = handler
		w.log.invoke(id, target, n%2 == 0, func(j *Journal) {
			in := &protocolpb.InputCommand{Value: &protocolpb.Value{Content: []byte(`"x"`)}}
			j.Entries[0].Raw, _ = in.MarshalVT()
		})
		return id
	}
	w.log.reply = func(_ ident.InvocationID, e *invocationpb.Effect) []Entry {
		if !bidi {
			return nil // the sleep is over only when the invocation is suspended
		}
		return completesSleeps(e)
	}
	expectOutput(t, w.log.await(call(1, "echo"), "ended"), `"Hello, x"`)
	id := call(2, "steps")
	for !bidi { // each wait is a suspension
		if r := w.log.awaitAny(id, "suspended", "ended"); r.state == "ended" {
			break
		} else if last := r.Entries[len(r.Entries)-1]; last.Type == protocol.TypeSleep {
			w.log.notify(id, protocol.TypeSleepCompletion, sleepDone(sleepID(t, last.Raw)).Raw)
		}
		w.log.resume(id)
	}
	expectOutput(t, w.log.await(id, "ended"), `"x12"`)
	r := w.log.await(call(3, "terminal"), "ended")
	var m protocolpb.OutputCommand
	if err := m.UnmarshalVT(r.Entries[len(r.Entries)-1].Raw); err != nil || m.GetFailure().GetMessage() != "over" {
		t.Errorf("terminal failure: %v, %v", m.GetFailure(), err)
	}
	id = call(4, "flaky")
	for !bidi {
		if r := w.log.awaitAny(id, "suspended", "ended"); r.state == "ended" {
			break
		}
		w.log.resume(id)
	}
	r = w.log.await(id, "ended")
	expectOutput(t, r, `"x1"`)
	if len(r.events) == 0 || r.events[0].DocCode != codeHandler {
		t.Errorf("events %v", r.events)
	}
	if r.ProtocolVersion != version {
		t.Errorf("version %d", r.ProtocolVersion)
	}
}

func sleepID(t *testing.T, raw []byte) uint32 {
	var m protocolpb.SleepCommand
	if err := m.UnmarshalVT(raw); err != nil {
		t.Fatal(err)
	}
	return m.ResultCompletionId
}

func expectOutput(t *testing.T, r *row, want string) {
	t.Helper()
	last := r.Entries[len(r.Entries)-1]
	var m protocolpb.OutputCommand
	if err := m.UnmarshalVT(last.Raw); last.Type != protocol.TypeOutput || err != nil || string(m.GetValue().GetContent()) != want {
		b, _ := json.Marshal(r.events)
		t.Errorf("the last entry is %s %q (%v), want the output %s; events %s", protocol.Name(last.Type), m.GetValue().GetContent(), err, want, b)
	}
}
