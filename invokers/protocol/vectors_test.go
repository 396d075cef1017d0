package protocol

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol/protocolpb"
)

// exchange is one captured exchange between the original server and an SDK.
type exchange struct {
	Name            string
	ProtocolVersion uint32 `json:"protocol_version"`
	Path            string
	ToEndpoint      string `json:"server_to_endpoint_hex"`
	ToServer        string `json:"endpoint_to_server_hex"`
	Frames          []captured
}

type captured struct {
	Dir, Type, Name, Flags string
	Length                 int
	RawHex                 string `json:"raw_hex"`
	Decoded                json.RawMessage
}

func loadExchanges(t testing.TB) []exchange {
	t.Helper()
	files, err := filepath.Glob("testdata/vectors/v[567]-*.json")
	if err != nil || len(files) < 70 {
		t.Fatalf("found %d captured exchanges (%v), want at least 70", len(files), err)
	}
	out := make([]exchange, len(files))
	for i, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &out[i]); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
	}
	return out
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func number(t testing.TB, s string) uint16 {
	t.Helper()
	v, err := strconv.ParseUint(s, 0, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(v)
}

// splitAll splits a whole stream.
func splitAll(t testing.TB, b []byte) (frames []Frame) {
	t.Helper()
	for len(b) > 0 {
		f, rest, _, ok, err := Split(b, 32<<20)
		if err != nil || !ok {
			t.Fatalf("split %d bytes: ok %v, err %v", len(b), ok, err)
		}
		frames, b = append(frames, f), rest
	}
	return frames
}

func newMessage(typ uint16) interface {
	proto.Message
	UnmarshalVT([]byte) error
	Message
} {
	switch typ {
	case TypeStart:
		return &protocolpb.Start{}
	case TypeSuspension:
		return &protocolpb.Suspension{}
	case TypeError:
		return &protocolpb.Error{}
	case TypeEnd:
		return &protocolpb.End{}
	case TypeCommandAck:
		return &protocolpb.CommandAck{}
	case TypeProposeRunCompletion:
		return &protocolpb.ProposeRunCompletion{}
	case TypeAwaitingOn:
		return &protocolpb.AwaitingOn{}
	case TypeProposeRunCompletionAck:
		return &protocolpb.ProposeRunCompletionAck{}
	case TypeInput:
		return &protocolpb.InputCommand{}
	case TypeOutput:
		return &protocolpb.OutputCommand{}
	case TypeGetLazyState:
		return &protocolpb.GetLazyStateCommand{}
	case TypeSetState:
		return &protocolpb.SetStateCommand{}
	case TypeClearState:
		return &protocolpb.ClearStateCommand{}
	case TypeClearAllState:
		return &protocolpb.ClearAllStateCommand{}
	case TypeGetLazyStateKeys:
		return &protocolpb.GetLazyStateKeysCommand{}
	case TypeGetEagerState:
		return &protocolpb.GetEagerStateCommand{}
	case TypeGetEagerStateKeys:
		return &protocolpb.GetEagerStateKeysCommand{}
	case TypeGetPromise:
		return &protocolpb.GetPromiseCommand{}
	case TypePeekPromise:
		return &protocolpb.PeekPromiseCommand{}
	case TypeCompletePromise:
		return &protocolpb.CompletePromiseCommand{}
	case TypeSleep:
		return &protocolpb.SleepCommand{}
	case TypeCall:
		return &protocolpb.CallCommand{}
	case TypeOneWayCall:
		return &protocolpb.OneWayCallCommand{}
	case TypeSendSignal:
		return &protocolpb.SendSignalCommand{}
	case TypeRun:
		return &protocolpb.RunCommand{}
	case TypeAttachInvocation:
		return &protocolpb.AttachInvocationCommand{}
	case TypeGetInvocationOutput:
		return &protocolpb.GetInvocationOutputCommand{}
	case TypeCompleteAwakeable:
		return &protocolpb.CompleteAwakeableCommand{}
	}
	if IsNotification(typ) && Known(typ) {
		return &protocolpb.Notification{}
	}
	return nil
}

// TestVectorsSplit: the captured streams are the captured frames, header by header.
func TestVectorsSplit(t *testing.T) {
	for _, x := range loadExchanges(t) {
		t.Run(x.Name, func(t *testing.T) {
			for dir, stream := range map[string]string{"S->E": x.ToEndpoint, "E->S": x.ToServer} {
				frames := splitAll(t, unhex(t, stream))
				for _, want := range x.Frames {
					if want.Dir != dir {
						continue
					}
					if len(frames) == 0 {
						t.Fatalf("%s: the stream ends before %s", dir, want.Name)
					}
					f := frames[0]
					frames = frames[1:]
					if f.Type != number(t, want.Type) || f.Flags != number(t, want.Flags) || len(f.Payload) != want.Length {
						t.Errorf("%s: got type %#x flags %#x length %d, want %s %s %d", dir, f.Type, f.Flags, len(f.Payload), want.Type, want.Flags, want.Length)
					}
					if Name(f.Type) != want.Name {
						t.Errorf("Name(%#x) = %q, want %q", f.Type, Name(f.Type), want.Name)
					}
					b := append(AppendHeader(nil, f.Type, f.Flags, len(f.Payload)), f.Payload...)
					if hex.EncodeToString(b) != want.RawHex {
						t.Errorf("%s: the frame written again differs", want.Name)
					}
				}
				if len(frames) != 0 {
					t.Errorf("%s: %d frames too many", dir, len(frames))
				}
			}
		})
	}
}

// TestVectorsDecode: every payload decodes to what was captured, passes the checks, and is encoded again to
// the same bytes. The last is what the SDKs rely on for Start and the notifications.
func TestVectorsDecode(t *testing.T) {
	for _, x := range loadExchanges(t) {
		t.Run(x.Name, func(t *testing.T) {
			for _, c := range x.Frames {
				f := splitAll(t, unhex(t, c.RawHex))[0]
				m := newMessage(f.Type)
				if err := m.UnmarshalVT(f.Payload); err != nil {
					t.Fatalf("%s: %v", c.Name, err)
				}
				got, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				var g, w any
				if err := json.Unmarshal(got, &g); err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(c.Decoded, &w); err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(g, w) {
					t.Errorf("%s decodes to\n%s\nwant\n%s", c.Name, got, c.Decoded)
				}
				if b := AppendMessage(nil, f.Type, m); c.Dir == "S->E" && hex.EncodeToString(b) != withoutFlags(c.RawHex) {
					t.Errorf("%s is encoded to\n%x\nwant\n%s", c.Name, b, c.RawHex)
				}
				if c.Dir == "E->S" {
					checkReceived(t, f)
				}
			}
		})
	}
}

func withoutFlags(frame string) string { return frame[:4] + "0000" + frame[8:] }

func checkReceived(t *testing.T, f Frame) {
	t.Helper()
	check := CheckForm
	if IsCommand(f.Type) {
		check = CheckCommand
	}
	if err := check(f.Type, f.Payload); err != nil {
		t.Errorf("a captured %s is refused: %v", Name(f.Type), err)
	}
}

// TestVectorsIdentity: the Start message's id, printable id and random seed belong together.
func TestVectorsIdentity(t *testing.T) {
	for _, x := range loadExchanges(t) {
		f := splitAll(t, unhex(t, x.ToEndpoint))[0]
		var m protocolpb.Start
		if err := m.UnmarshalVT(f.Payload); err != nil {
			t.Fatal(err)
		}
		id, err := ident.InvocationIDFromBytes(m.Id)
		if err != nil {
			t.Fatal(err)
		}
		if id.String() != m.DebugId {
			t.Errorf("%s: %x prints as %s, want %s", x.Name, m.Id, id, m.DebugId)
		}
		// The server had another derivation of seeds switched on for these two.
		unique := x.Name == "v7-09-scope" || x.Name == "v7-10-vqueues-idempotency"
		if seed := ident.RandomSeed(id); seed != m.RandomSeed && !unique {
			t.Errorf("%s: seed %d, want %d", x.Name, seed, m.RandomSeed)
		}
	}
}

// TestVectorsNotifications: the encoders of notifications give the captured bytes.
func TestVectorsNotifications(t *testing.T) {
	seen := 0
	for _, x := range loadExchanges(t) {
		for _, f := range splitAll(t, unhex(t, x.ToEndpoint)) {
			if !IsNotification(f.Type) {
				continue
			}
			var m protocolpb.Notification
			if err := m.UnmarshalVT(f.Payload); err != nil {
				t.Fatal(err)
			}
			seen++
			if got := encodeNotification(&m); string(got) != string(f.Payload) {
				t.Errorf("%s: %s is encoded to\n%x\nwant\n%x", x.Name, Name(f.Type), got, f.Payload)
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d notifications in the vectors", seen)
	}
}

func encodeNotification(m *protocolpb.Notification) []byte {
	r := ResultOf(m.GetValue(), m.GetFailure())
	switch id := m.Id.(type) {
	case *protocolpb.Notification_Idx:
		return SignalIndex(id.Idx, r)
	case *protocolpb.Notification_Name:
		return SignalName(id.Name, r)
	}
	switch res := m.Result.(type) {
	case *protocolpb.Notification_InvocationId:
		return InvocationIDCompletion(m.GetCompletionId(), res.InvocationId)
	case *protocolpb.Notification_StateKeys:
		return StateKeysCompletion(m.GetCompletionId(), res.StateKeys.GetKeys())
	}
	return Completion(m.GetCompletionId(), r)
}

// TestVectorsCalls: CallOf reads what the captured JSON says.
func TestVectorsCalls(t *testing.T) {
	seen := 0
	for _, x := range loadExchanges(t) {
		for _, c := range x.Frames {
			f := splitAll(t, unhex(t, c.RawHex))[0]
			if f.Type != TypeCall && f.Type != TypeOneWayCall {
				continue
			}
			var want struct {
				Service string  `json:"service_name"`
				Handler string  `json:"handler_name"`
				Key     string  `json:"key"`
				Idem    *string `json:"idempotency_key"`
				Scope   *string `json:"scope"`
				Limit   *string `json:"limit_key"`
			}
			if err := json.Unmarshal(c.Decoded, &want); err != nil {
				t.Fatal(err)
			}
			seen++
			if got := CallOf(f.Type, f.Payload); !reflect.DeepEqual(got, Call{want.Service, want.Handler, want.Key, want.Idem, want.Scope, want.Limit}) {
				t.Errorf("%s: got %+v, want %+v", x.Name, got, want)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d calls in the vectors", seen)
	}
}

// TestVectorsFutures: suspensions of V5/V6 become one node, those of V7 keep their tree.
func TestVectorsFutures(t *testing.T) {
	seen := map[uint32]int{}
	for _, x := range loadExchanges(t) {
		for _, f := range splitAll(t, unhex(t, x.ToServer)) {
			switch f.Type {
			case TypeSuspension:
				fut, err := SuspensionFuture(x.ProtocolVersion, f.Payload, 1000)
				if err != nil {
					t.Fatalf("%s: %v", x.Name, err)
				}
				if flat := x.ProtocolVersion < 7; flat != (fut.Combinator == invocationpb.Future_UNKNOWN) {
					t.Errorf("%s: combinator %v", x.Name, fut.Combinator)
				}
				seen[x.ProtocolVersion]++
			case TypeAwaitingOn:
				if _, err := AwaitedFuture(f.Payload, 1000); err != nil {
					t.Errorf("%s: %v", x.Name, err)
				}
			}
		}
	}
	if len(seen) != 3 {
		t.Errorf("suspensions per version: %v, want all three versions", seen)
	}
}

// TestVectorsNameNoMachine: the captures name no file system but the sample one.
func TestVectorsNameNoMachine(t *testing.T) {
	files, _ := filepath.Glob("testdata/vectors/*.json")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"/home/", "/root/", "/Users/", "/work/"} {
			if strings.Contains(string(b), bad) || strings.Contains(string(b), hex.EncodeToString([]byte(bad))) ||
				strings.Contains(string(b), base64.StdEncoding.EncodeToString([]byte(bad))) {
				t.Errorf("%s contains %q", f, bad)
			}
		}
	}
}
