package fsm

import (
	"encoding/hex"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// vector is a recorded exchange of the real server with an endpoint.
type vector struct {
	Name            string            `json:"name"`
	ProtocolVersion uint32            `json:"protocol_version"`
	Path            string            `json:"path"`
	RequestHeaders  map[string]string `json:"request_headers"`
	Frames          []struct {
		Dir    string `json:"dir"`
		Type   string `json:"type"`
		RawHex string `json:"raw_hex"`
	} `json:"frames"`
}

type vectorFrame struct {
	toEndpoint bool
	typ        uint16
	raw        []byte
}

func loadVectors(t *testing.T) (vs []vector) {
	t.Helper()
	files, err := filepath.Glob("../../../invokers/protocol/testdata/vectors/v[567]-*.json")
	if err != nil || len(files) < 70 {
		t.Fatalf("%d vectors, %v", len(files), err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var v vector
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		vs = append(vs, v)
	}
	return vs
}

func (v *vector) frames(t *testing.T) (fs []vectorFrame) {
	for _, f := range v.Frames {
		typ, err := strconv.ParseUint(f.Type, 0, 16)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := hex.DecodeString(f.RawHex)
		if err != nil || len(raw) < 8 {
			t.Fatalf("frame %s: %v", f.RawHex, err)
		}
		fs = append(fs, vectorFrame{f.Dir == "S->E", uint16(typ), raw[8:]})
	}
	return fs
}

// listenersLater is the exchange in which an earlier GetPromise of the completing handler is answered. The
// real server tells listeners by a message of their own, behind the commands that came in the same
// moment. Here they are told in the step that completes the promise; both orders are replayed as they
// were journalled.
const listenersLater = "v6-34-promises"

// player puts the frames of an exchange through the state machine. What the endpoint sent becomes effects.
// A notification that the server sent must either be what the machine has appended next, or have a cause
// outside, which is then applied: a timer, a response, a signal.
type player struct {
	*world
	v       *vector
	fs      []vectorFrame
	id      ident.InvocationID
	helper  int
	waiting []Action // notifications of the machine that no frame was compared with yet
}

// The machine must produce the notifications that the real server sent, byte by byte and in their order.
func TestRecordedExchanges(t *testing.T) {
	compared := 0
	for _, v := range loadVectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			p := &player{world: newWorld(t), v: &v, fs: v.frames(t)}
			p.now = 1
			compared += p.play()
		})
	}
	if compared < 75 {
		t.Fatalf("only %d notifications were compared", compared)
	}
}

// target guesses the kind of the target from what the handler does.
func (p *player) target() *invocationpb.Target {
	parts := strings.Split(strings.Trim(p.v.Path, "/"), "/")
	t := service(parts[len(parts)-2])
	t.Handler = parts[len(parts)-1]
	key, ok := p.v.RequestHeaders["x-restate-service-key"]
	if !ok {
		return t
	}
	t.ServiceType, t.HandlerType = uint32(schema.VirtualObject), uint32(schema.Exclusive)
	for _, f := range p.fs {
		switch f.typ {
		case protocol.TypeGetPromise, protocol.TypePeekPromise, protocol.TypeCompletePromise:
			t.ServiceType, t.HandlerType = uint32(schema.Workflow), uint32(schema.WorkflowRun)
		}
	}
	var err error
	if t.Key, err = url.PathUnescape(key); err != nil {
		p.t.Fatal(err)
	}
	return t
}

func (p *player) play() (compared int) {
	var start protocolpb.Start
	if err := start.UnmarshalVT(p.fs[0].raw); err != nil {
		p.t.Fatal(err)
	}
	p.id = ident.InvocationID(start.Id)
	var in protocolpb.InputCommand
	if p.fs[1].typ != protocol.TypeInput {
		p.t.Fatalf("the journal begins with %s", protocol.Name(p.fs[1].typ))
	}
	if err := in.UnmarshalVT(p.fs[1].raw); err != nil {
		p.t.Fatal(err)
	}
	x := &invocationpb.Invocation{Id: start.Id, Target: p.target(), Argument: in.Value.GetContent(), Sink: &invocationpb.Sink{RequestId: requestID(1)}}
	for _, h := range in.Headers {
		x.Headers = append(x.Headers, &invocationpb.Header{Key: h.Key, Value: h.Value})
	}
	p.started(x)
	if got := p.journal(p.id)[0].Raw; string(got) != string(p.fs[1].raw) {
		p.t.Fatalf("input %x, the real server has %x", got, p.fs[1].raw)
	}
	p.effects(p.id, pinned(p.v.ProtocolVersion))
	for i := 2; i < len(p.fs); i++ {
		f := p.fs[i]
		switch {
		case protocol.IsCommand(f.typ):
			p.command(i)
		case f.toEndpoint && (protocol.IsNotification(f.typ) || f.typ == protocol.TypeProposeRunCompletionAck):
			p.compare(f)
			compared++
		case f.typ == protocol.TypeProposeRunCompletion && p.status(p.id) == storepb.Invocation_INVOKED:
			p.proposal(f)
		case !f.toEndpoint && f.typ == protocol.TypeSuspension:
			p.suspension(f)
		case !f.toEndpoint && f.typ == protocol.TypeEnd:
			p.take(p.world.effects(p.id, end()))
		}
	}
	return compared
}

func (p *player) take(as []Action) {
	for _, a := range as {
		if a.Kind == ActNotify && a.ID == p.id {
			p.waiting = append(p.waiting, a)
		}
	}
}

// rejected are the frames that the real server did not accept because of what only the invoker can know.
func (p *player) rejected(i int) bool {
	for _, f := range p.fs[i+1:] {
		if f.typ != protocol.TypeError {
			return false
		}
	}
	return p.fs[i].typ == protocol.TypeCall && p.answer(i) == nil
}

func (p *player) command(i int) {
	f := p.fs[i]
	if protocol.CheckForm(f.typ, f.raw) != nil || p.rejected(i) {
		return
	}
	e := rawEntry(f.typ, f.raw)
	switch f.typ {
	case protocol.TypeCall, protocol.TypeOneWayCall:
		c := protocol.CallOf(f.typ, f.raw)
		idx, _ := fieldOf(f.raw, 10)
		t := &invocationpb.Target{Service: c.Service, Handler: c.Handler, Key: c.Key, ServiceType: 1, HandlerType: 1}
		callee := idFor(t, i)
		if n := p.notification(i, idx); n != nil {
			var err error
			if callee, err = ident.ParseInvocationID(n.GetInvocationId()); err != nil {
				p.t.Fatal(err)
			}
		}
		e.GetCommand().Callee = &invocationpb.Effect_Callee{InvocationId: callee[:], Target: t}
	case protocol.TypeGetLazyState:
		p.presetState(i)
	case protocol.TypeGetLazyStateKeys:
		p.presetKeys(i)
	case protocol.TypePeekPromise, protocol.TypeCompletePromise:
		p.presetPromise(i)
	}
	p.take(p.world.effects(p.id, e))
}

// answer is the notification that answers the command at i; nil when the exchange has none.
func (p *player) answer(i int) *protocolpb.Notification {
	c, _ := fieldOf(p.fs[i].raw, 11)
	return p.notification(i, c)
}

func (p *player) notification(i int, completion uint32) *protocolpb.Notification {
	for _, f := range p.fs[i+1:] {
		if !f.toEndpoint || !protocol.IsNotification(f.typ) || f.typ == protocol.TypeSignal {
			continue
		}
		n := new(protocolpb.Notification)
		if err := n.UnmarshalVT(f.raw); err != nil {
			p.t.Fatal(err)
		}
		if n.GetCompletionId() == completion {
			return n
		}
	}
	return nil
}

// presetState gives the object the value that the real one had.
func (p *player) presetState(i int) {
	var c protocolpb.GetLazyStateCommand
	if err := c.UnmarshalVT(p.fs[i].raw); err != nil {
		p.t.Fatal(err)
	}
	o := object(&p.id, p.row(p.id).Target)
	if v := p.answer(i).GetValue(); v != nil {
		p.txn.rows[string(keyspace.AppendState(nil, &o, c.Key))] = v.Content
	}
}

func (p *player) presetKeys(i int) {
	o := object(&p.id, p.row(p.id).Target)
	for _, k := range p.answer(i).GetStateKeys().GetKeys() {
		p.txn.rows[string(keyspace.AppendState(nil, &o, k))] = []byte("v")
	}
}

// presetPromise completes a promise that was completed by somebody else before.
func (p *player) presetPromise(i int) {
	n := p.answer(i)
	if n == nil || n.GetVoid() != nil {
		return
	}
	name, _ := stringField(p.fs[i].raw, 1)
	value := n.GetValue()
	if p.fs[i].typ == protocol.TypeCompletePromise {
		value = &protocolpb.Value{Content: []byte("of another one")}
	}
	p.completePromise(name, value, n.GetFailure())
}

func (p *player) completePromise(name string, v *protocolpb.Value, f *protocolpb.Failure) {
	p.helper++
	t := p.row(p.id).Target
	r := p.started(request(&invocationpb.Target{Service: t.Service, Handler: "resolve", Key: t.Key, ServiceType: t.ServiceType, HandlerType: uint32(schema.Shared)}, 1000+p.helper))
	c := &protocolpb.CompletePromiseCommand{Key: name, ResultCompletionId: 1}
	if v != nil {
		c.Completion = &protocolpb.CompletePromiseCommand_CompletionValue{CompletionValue: v}
	} else {
		c.Completion = &protocolpb.CompletePromiseCommand_CompletionFailure{CompletionFailure: f}
	}
	p.take(p.world.effects(r, entry(protocol.TypeCompletePromise, c)))
}

func stringField(raw []byte, num int) (string, bool) {
	var n protocolpb.PeekPromiseCommand // field 1 is the key in all promise commands
	if num != 1 || n.UnmarshalVT(raw) != nil {
		return "", false
	}
	return n.Key, true
}

func (p *player) proposal(f vectorFrame) {
	id, value, fail, err := protocol.RunProposal(f.raw)
	if err != nil {
		return // the invoker does not let it through
	}
	res := success(value)
	if fail != nil {
		res = &invocationpb.Result{Kind: &invocationpb.Result_Failure{Failure: fail}}
	}
	p.take(p.world.effects(p.id, runResult(id, res)))
}

func (p *player) suspension(f vectorFrame) {
	awaiting, err := protocol.SuspensionFuture(p.v.ProtocolVersion, f.raw, 1000)
	if err != nil {
		return // the invoker does not let it through
	}
	p.take(p.world.effects(p.id, suspended(awaiting)))
	if s := p.status(p.id); s != storepb.Invocation_SUSPENDED {
		p.t.Fatalf("%s after a suspension on %v", s, awaiting)
	}
}

// compare checks the next notification against what the real server sent.
func (p *player) compare(f vectorFrame) {
	if len(p.waiting) == 0 {
		p.cause(f)
	}
	if len(p.waiting) == 0 {
		p.t.Fatalf("the machine did not append %s %x", protocol.Name(f.typ), f.raw)
	}
	n := 0
	if p.v.Name == listenersLater {
		n = max(0, slices.IndexFunc(p.waiting, func(a Action) bool { return a.Type == f.typ && string(a.Raw) == string(f.raw) }))
	}
	got := p.waiting[n]
	p.waiting = slices.Delete(p.waiting, n, n+1)
	if f.typ == protocol.TypeProposeRunCompletionAck {
		a, _ := fieldOf(f.raw, 1)
		b, _ := fieldOf(got.Raw, 1)
		if a != b || got.Type != protocol.TypeRunCompletion {
			p.t.Fatalf("%s %x, the real server acknowledged run %d", protocol.Name(got.Type), got.Raw, a)
		}
		return
	}
	if got.Type != f.typ || string(got.Raw) != string(f.raw) {
		p.t.Fatalf("%s %x, the real server sent %s %x", protocol.Name(got.Type), got.Raw, protocol.Name(f.typ), f.raw)
	}
}

// cause applies what made the real server append a notification by itself.
func (p *player) cause(f vectorFrame) {
	var n protocolpb.Notification
	if err := n.UnmarshalVT(f.raw); err != nil {
		p.t.Fatal(err)
	}
	res := protocol.ResultOf(n.GetValue(), n.GetFailure())
	c := n.GetCompletionId()
	life := p.row(p.id).GetLife()
	switch f.typ {
	case protocol.TypeSleepCompletion:
		var a storepb.Awaited
		if ok, err := read(p.txn, keyspace.AppendCompletion(nil, &p.id, c), &a); err != nil || !ok {
			p.t.Fatalf("no sleep %d: %v", c, err)
		}
		now := p.now
		p.now = a.FireAtMs
		p.take(p.apply(fire(keyspace.TimerKey{FireAtMs: a.FireAtMs, Kind: keyspace.TimerSleep, ID: p.id, CompletionID: c})))
		p.now = now
	case protocol.TypeCallCompletion, protocol.TypeAttachInvocationCompletion, protocol.TypeGetInvocationOutputCompletion:
		p.take(p.apply(response(p.id, life, c, res)))
	case protocol.TypeRunCompletion: // of an attempt before the recorded one
		p.take(p.world.effects(p.id, runResult(c, res)))
	case protocol.TypeGetPromiseCompletion:
		p.completePromise(p.promiseName(c), n.GetValue(), n.GetFailure())
	case protocol.TypeSignal:
		s := &recordpb.Signal{InvocationId: p.id[:], Result: res, Id: &recordpb.Signal_Index{Index: n.GetIdx()}}
		if _, ok := n.Id.(*protocolpb.Notification_Name); ok {
			s.Id = &recordpb.Signal_Name{Name: n.GetName()}
		}
		p.take(p.apply(&recordpb.Command{Kind: &recordpb.Command_Signal{Signal: s}}))
	}
}

func (p *player) promiseName(completion uint32) string {
	for _, f := range p.fs {
		if c, _ := fieldOf(f.raw, 11); f.typ == protocol.TypeGetPromise && c == completion {
			name, _ := stringField(f.raw, 1)
			return name
		}
	}
	p.t.Fatalf("no get-promise %d", completion)
	return ""
}
