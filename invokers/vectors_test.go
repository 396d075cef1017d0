package invokers

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
)

// vector is one exchange captured between the original server and an SDK.
type vector struct {
	Name            string
	ProtocolVersion uint32 `json:"protocol_version"`
	HTTP            string
	Path            string
	RequestHeaders  map[string]string `json:"request_headers"`
	StreamError     string            `json:"stream_error"`
	Frames          []struct {
		Dir, Type string
		RawHex    string `json:"raw_hex"`
	}
}

func loadVectors(t testing.TB) (out []vector) {
	t.Helper()
	files, _ := filepath.Glob("protocol/testdata/vectors/v[567]-*.json")
	if len(files) < 70 {
		t.Fatalf("only %d captured exchanges", len(files))
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var v vector
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// step is one captured frame.
type step struct {
	fromServer bool
	raw        []byte
	protocol.Frame
}

func (v *vector) steps(t testing.TB) (out []step) {
	for _, f := range v.Frames {
		b, err := hex.DecodeString(f.RawHex)
		if err != nil {
			t.Fatal(err)
		}
		fr, _, _, ok, err := protocol.Split(b, 1<<30)
		if !ok || err != nil {
			t.Fatal(err)
		}
		out = append(out, step{fromServer: f.Dir == "S->E", raw: b, Frame: fr})
	}
	return out
}

// TestVectors replays what SDKs sent and compares what they get, byte for byte, and in the same order: Start,
// journal, notifications, acknowledgements, headers. The log behind the invoker is the test's: it appends
// the captured notifications.
func TestVectors(t *testing.T) {
	for _, v := range loadVectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { replayVector(t, &v) })
		})
	}
}

func replayVector(t *testing.T, v *vector) {
	steps := v.steps(t)
	start := startOf(t, steps[0].Frame)
	id, err := ident.InvocationIDFromBytes(start.Id)
	if err != nil {
		t.Fatal(err)
	}
	known := int(start.KnownEntries)
	target := vectorTarget(t, v, start)
	reqResp := v.HTTP != "HTTP/2.0" || strings.Contains(v.Name, "http11")
	var w *world
	played := make(chan struct{})
	script := func(svc *service) {
		defer close(played)
		svc.accept()
		first := svc.expect(protocol.TypeStart)
		if want := expectedStart(steps[0], start, id); !bytes.Equal(first.Payload, want) {
			t.Errorf("Start is\n%x\nwant\n%x", first.Payload, want)
		}
		for _, s := range steps[1 : 1+known] {
			if f, ok := svc.next(); !ok || f.Type != s.Type || !bytes.Equal(f.Payload, s.Payload) {
				t.Errorf("replay: got %s %x, want %s %x", protocol.Name(f.Type), f.Payload, protocol.Name(s.Type), s.Payload)
			}
		}
		checkVectorHeaders(t, v, svc)
		playVector(t, w, svc, id, steps[1+known:], v.StreamError != "")
	}
	w = newWorld(t, func(c *Config, d *Deps) { c.AnnounceV7 = true }, script)
	w.schema.set(vectorDeployment(t, v, steps, target, reqResp))
	w.log.invoke(id, target, false, func(j *Journal) {
		j.Entries = nil
		for _, s := range steps[1 : 1+known] {
			j.Entries = append(j.Entries, Entry{Type: s.Type, Raw: s.Payload})
		}
		for _, e := range start.StateMap {
			j.State = append(j.State, StateEntry{e.Key, e.Value})
		}
		j.PartialState = start.PartialState
		j.IdempotencyKey = start.IdempotencyKey
		j.LimitKey = start.GetLimitKey()
		j.ModifiedAtMs = uint64(time.Now().UnixMilli()) - start.DurationSinceLastStoredEntry
	})
	<-played
	synctest.Wait()
	checkVectorEnd(t, w.log.row(id), steps[len(steps)-1])
}

// expectedStart is the captured Start without what the test does not reproduce: the count of retries of
// earlier attempts, and seeds of another derivation.
func expectedStart(s step, start *protocolpb.Start, id ident.InvocationID) []byte {
	seed := ident.RandomSeed(id)
	if start.RetryCountSinceLastStoredEntry == 0 && start.RandomSeed == seed {
		return s.Payload
	}
	start.RetryCountSinceLastStoredEntry, start.RandomSeed = 0, seed
	b, _ := start.MarshalVT()
	return b
}

// playVector plays the service's side: it sends what was captured, and expects what was captured.
func playVector(t *testing.T, w *world, svc *service, id ident.InvocationID, steps []step, killed bool) {
	for len(steps) > 0 {
		s := steps[0]
		if s.fromServer {
			if protocol.IsNotification(s.Type) && s.Type != protocol.TypeRunCompletion {
				w.log.notify(id, s.Type, s.Payload)
			}
			if f, ok := svc.next(); !ok || f.Type != s.Type || f.Flags != 0 || !bytes.Equal(f.Payload, s.Payload) {
				t.Errorf("got %s %x, want %s %x", protocol.Name(f.Type), f.Payload, protocol.Name(s.Type), s.Payload)
			}
			steps = steps[1:]
			continue
		}
		n := 1
		for n < len(steps) && !steps[n].fromServer {
			n++
		}
		var b []byte
		for _, s := range steps[:n] {
			b = append(b, s.raw...)
		}
		svc.send(b)
		steps = steps[n:]
	}
	if killed {
		w.log.do(func() { w.partition.Abort(id) })
		svc.canceled()
		return
	}
	svc.halfClosed()
	svc.end(eof)
}

func checkVectorHeaders(t *testing.T, v *vector, svc *service) {
	got := map[string]string{}
	for _, f := range svc.s.request.Header {
		got[f.Name] = f.Value
	}
	for n, want := range v.RequestHeaders {
		if n == "traceparent" || n == "tracestate" {
			continue
		}
		if got[n] != want {
			t.Errorf("header %s is %q, want %q", n, got[n], want)
		}
		delete(got, n)
	}
	if len(got) != 0 {
		t.Errorf("headers that were not captured: %v", got)
	}
	if path := svc.s.endpoint.Target(svc.s.request.Path); path != v.Path {
		t.Errorf("path %s, want %s", path, v.Path)
	}
}

func checkVectorEnd(t *testing.T, r row, last step) {
	t.Helper()
	want := map[uint16]string{protocol.TypeEnd: "ended", protocol.TypeSuspension: "suspended", protocol.TypeError: "invoked"}[last.Type]
	if want == "" {
		want = "invoked" // killed
	}
	if last.Type == protocol.TypeError {
		var m protocolpb.Error
		if err := m.UnmarshalVT(last.Payload); err != nil {
			t.Fatal(err)
		}
		if m.Behavior == protocolpb.ErrorBehavior_PAUSE {
			want = "paused"
		} else if len(r.events) != 1 || r.events[0].Message != m.Message || r.events[0].DocCode != codeHandler {
			t.Errorf("events %v, want the error", r.events)
		}
	}
	if r.state != want {
		t.Errorf("the invocation is %s, want %s", r.state, want)
	}
}

// vectorPath splits the captured path into the deployment's prefix and the target.
func vectorPath(t *testing.T, v *vector) (prefix, service, handler string) {
	prefix, rest, ok := strings.Cut(v.Path, "/invoke/")
	service, handler, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		t.Fatalf("path %q", v.Path)
	}
	return prefix, service, handler
}

func vectorTarget(t *testing.T, v *vector, start *protocolpb.Start) *invocationpb.Target {
	_, service, handler := vectorPath(t, v)
	target := &invocationpb.Target{
		Service: service, Handler: handler, Key: start.Key, Scope: start.GetScope(),
		ServiceType: uint32(schema.Service), HandlerType: uint32(schema.Shared),
	}
	if _, ok := v.RequestHeaders["x-restate-service-key"]; ok {
		target.ServiceType, target.HandlerType = uint32(schema.VirtualObject), uint32(schema.Exclusive)
		if strings.HasPrefix(service, "W") {
			target.ServiceType, target.HandlerType = uint32(schema.Workflow), uint32(schema.WorkflowRun)
		}
	}
	return target
}

// vectorDeployment serves the target of the exchange and everything that it calls.
func vectorDeployment(t *testing.T, v *vector, steps []step, target *invocationpb.Target, reqResp bool) *schema.Deployment {
	prefix, _, _ := vectorPath(t, v)
	d := &schema.Deployment{
		ID: testDeployment, ProtocolType: schema.BidiStream, MinProtocol: 5, MaxProtocol: v.ProtocolVersion,
		Address: schema.Address{HTTP: &schema.HTTPAddress{URI: "http://svc:9080" + prefix, Version: schema.HTTP2}},
	}
	if extra, ok := v.RequestHeaders["x-extra"]; ok { // the one that was registered with the deployment
		d.Headers = map[string]string{"X-Extra": extra}
	}
	if reqResp {
		d.ProtocolType = schema.RequestResponse
	}
	add := func(service, handler string, typ schema.ServiceType, h schema.HandlerType) {
		i := slices.IndexFunc(d.Services, func(s schema.ServiceRevision) bool { return s.Name == service })
		if i < 0 {
			i = len(d.Services)
			d.Services = append(d.Services, schema.ServiceRevision{Name: service, Type: typ, Revision: 1})
		}
		hs := &d.Services[i].Handlers
		if !slices.ContainsFunc(*hs, func(x schema.Handler) bool { return x.Name == handler }) {
			*hs = append(*hs, schema.Handler{Name: handler, Type: h})
		}
	}
	add(target.Service, target.Handler, schema.ServiceType(target.ServiceType), schema.HandlerType(target.HandlerType))
	for _, s := range steps {
		if s.Type == protocol.TypeCall || s.Type == protocol.TypeOneWayCall {
			c := protocol.CallOf(s.Type, s.Payload)
			if c.Key != "" {
				add(c.Service, c.Handler, schema.VirtualObject, schema.Exclusive)
			} else {
				add(c.Service, c.Handler, schema.Service, schema.Shared)
			}
		}
	}
	return d
}
