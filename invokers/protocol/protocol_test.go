package protocol

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol/protocolpb"
)

// TestVectorsStart: AppendStart writes the captured Start frames.
func TestVectorsStart(t *testing.T) {
	for _, x := range loadExchanges(t) {
		f := splitAll(t, unhex(t, x.ToEndpoint))[0]
		var m protocolpb.Start
		if err := m.UnmarshalVT(f.Payload); err != nil {
			t.Fatal(err)
		}
		id, _ := ident.InvocationIDFromBytes(m.Id)
		got := AppendStart([]byte("before"), &Start{
			ID: id, DebugID: m.DebugId, KnownEntries: m.KnownEntries,
			StateLen: len(m.StateMap), State: func(i int) (k, v []byte) { return m.StateMap[i].Key, m.StateMap[i].Value },
			PartialState: m.PartialState, Key: m.Key, RetryCount: m.RetryCountSinceLastStoredEntry,
			SinceLastEntryMs: m.DurationSinceLastStoredEntry, RandomSeed: m.RandomSeed,
			Scope: m.Scope, LimitKey: m.LimitKey, IdempotencyKey: m.IdempotencyKey,
		})
		want := AppendFrame([]byte("before"), TypeStart, f.Payload)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%x\nwant\n%x", x.Name, got, want)
		}
	}
}

func TestAcks(t *testing.T) {
	if got := AppendCommandAck(nil, 3); hex.EncodeToString(got) != "00040000000000020803" {
		t.Errorf("command ack %x", got)
	}
	if got := AppendCommandAck(nil, 0); hex.EncodeToString(got) != "0004000000000000" {
		t.Errorf("command ack of 0 %x", got)
	}
	if got := AppendRunAck(nil, 1); hex.EncodeToString(got) != "00070000000000020801" {
		t.Errorf("run ack %x", got)
	}
}

func TestSplit(t *testing.T) {
	whole := AppendFrame(nil, TypeRun, []byte{0x58, 1})
	for cut := range whole {
		_, rest, need, ok, err := Split(whole[:cut], 100)
		if ok || err != nil || len(rest) != cut || need <= cut || need > len(whole) {
			t.Errorf("cut at %d: ok %v need %d err %v", cut, ok, need, err)
		}
	}
	f, rest, _, ok, err := Split(append(bytes.Clone(whole), 9), 100)
	if !ok || err != nil || f.Type != TypeRun || len(f.Payload) != 2 || len(rest) != 1 {
		t.Errorf("whole frame: %+v ok %v err %v", f, ok, err)
	}
}

// TestSplitChecksTheLengthFirst: a header of 4 GiB is refused from its eight bytes; nothing is waited for or
// allocated. A frame of exactly the limit is too large, one byte less is not.
func TestSplitChecksTheLengthFirst(t *testing.T) {
	for _, c := range []struct {
		header string
		large  bool
	}{
		{"04010000ffffffff", true},
		{"0401000000000064", true},
		{"0401000000000063", false},
	} {
		_, _, need, ok, err := Split(unhex(t, c.header), 100)
		var tooLarge *TooLargeError
		if got := errors.As(err, &tooLarge); got != c.large || ok {
			t.Errorf("%s: ok %v need %d err %v", c.header, ok, need, err)
		}
	}
}

const (
	goodID        = "inv_13YKh0kXDhie7Ml7CbGYIT6mFfcAsgmILy"
	goodAwakeable = "sign_1346YRn8WZVw6N44idZCnF_XEnJa1PJQoAAAAEQ"
)

func bytesField(num protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), v)
}

func varintField(num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
}

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestCheckCommand: each required part, each identifier and each string is looked at. An accepted command
// is applied by every replica for ever, so that one that lacks a part would stop the partition.
func TestCheckCommand(t *testing.T) {
	empty := ""
	for _, c := range []struct {
		name string
		typ  uint16
		raw  []byte
		want string // part of the error; "" = accepted
	}{
		{"output with an empty value", TypeOutput, bytesField(14, empty), ""},
		{"output without result", TypeOutput, nil, "misses a required field"},
		{"output as failure", TypeOutput, bytesField(15, empty), ""},
		{"output with a value that is no message", TypeOutput, bytesField(14, "\x0a\x05x"), "not a valid protobuf"},
		{"output with a varint for a value", TypeOutput, varintField(14, 1), "not a valid protobuf"},
		{"output with a bad name", TypeOutput, cat(bytesField(14, empty), bytesField(12, "\xff")), "UTF-8"},
		{"failure with bad text", TypeOutput, bytesField(15, string(bytesField(2, "\xff"))), "UTF-8"},
		{"state without value", TypeSetState, bytesField(1, "k"), "misses a required field"},
		{"state with binary key", TypeSetState, cat(bytesField(1, "\xff"), bytesField(3, empty)), ""},
		{"eager state without result", TypeGetEagerState, bytesField(1, "k"), "misses"},
		{"eager state void", TypeGetEagerState, cat(bytesField(1, "k"), bytesField(13, empty)), ""},
		{"eager keys without keys", TypeGetEagerStateKeys, nil, "misses"},
		{"promise without completion", TypeCompletePromise, bytesField(1, "p"), "misses"},
		{"promise", TypeCompletePromise, cat(bytesField(1, "p"), bytesField(3, empty)), ""},
		{"signal to a bad id", TypeSendSignal, cat(bytesField(1, "inv_1x"), varintField(2, 17), bytesField(4, empty)), "target invocation id"},
		{"signal without id", TypeSendSignal, cat(bytesField(1, goodID), bytesField(4, empty)), "misses"},
		{"signal without result", TypeSendSignal, cat(bytesField(1, goodID), varintField(2, 17)), "misses"},
		{"signal without target", TypeSendSignal, cat(varintField(2, 17), bytesField(4, empty)), "target invocation id"},
		{"signal", TypeSendSignal, cat(bytesField(1, goodID), varintField(2, 17), bytesField(4, empty)), ""},
		{"named signal", TypeSendSignal, cat(bytesField(1, goodID), bytesField(3, "n"), bytesField(6, empty)), ""},
		{"attach without target", TypeAttachInvocation, varintField(11, 1), "misses"},
		{"attach to a bad id", TypeAttachInvocation, bytesField(1, "x"), "bad invocation id"},
		{"attach", TypeAttachInvocation, bytesField(1, goodID), ""},
		{"output of a workflow", TypeGetInvocationOutput, bytesField(4, empty), ""},
		{"awakeable with a bad id", TypeCompleteAwakeable, cat(bytesField(1, "sign_1"), bytesField(2, empty)), "awakeable id"},
		{"awakeable without result", TypeCompleteAwakeable, bytesField(1, goodAwakeable), "misses"},
		{"awakeable", TypeCompleteAwakeable, cat(bytesField(1, goodAwakeable), bytesField(2, empty)), ""},
		{"unknown fields", TypeRun, cat(varintField(11, 1), bytesField(999, "x"), varintField(1000, 7)), ""},
		{"field number 0", TypeRun, []byte{0, 1}, "not a valid protobuf"},
		{"truncated", TypeCall, bytesField(1, "service")[:4], "not a valid protobuf"},
		{"input", TypeInput, bytesField(14, empty), "must not send"},
		{"start", TypeStart, nil, "must not send"},
		{"notification", TypeSignal, nil, "must not send"},
		{"unknown command", 0x0415, nil, "not known"},
		{"gap in the commands", 0x040F, nil, "not known"},
	} {
		err := CheckCommand(c.typ, c.raw)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: refused: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want an error with %q", c.name, err, c.want)
		}
	}
}

func TestCheckControl(t *testing.T) {
	for _, c := range []struct {
		name string
		typ  uint16
		raw  []byte
		ok   bool
	}{
		{"proposal without result", TypeProposeRunCompletion, varintField(1, 1), false},
		{"proposal", TypeProposeRunCompletion, cat(varintField(1, 1), bytesField(14, "")), true},
		{"error with an unknown behavior", TypeError, varintField(9, 3), false},
		{"error", TypeError, varintField(9, 2), true},
		{"awaiting nothing", TypeAwaitingOn, nil, false},
		{"unknown combinator", TypeSuspension, bytesField(4, string(varintField(5, 9))), false},
		{"unpacked ids", TypeSuspension, cat(varintField(1, 1), varintField(1, 2)), true},
		{"packed ids", TypeSuspension, bytesField(1, "\x01\x02"), true},
		{"packed ids cut off", TypeSuspension, bytesField(1, "\x01\x82"), false},
	} {
		if err := CheckForm(c.typ, c.raw); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	raw := bytesField(14, string(bytesField(1, strings.Repeat("x", 1000))))
	if n := testing.AllocsPerRun(100, func() {
		if err := CheckCommand(TypeOutput, raw); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestManyParts: a message that would be hundreds of times bigger in memory is refused; one with as many parts as anybody
// needs is not, and bytes are no parts.
func TestManyParts(t *testing.T) {
	repeat := func(n int, b []byte) string { return string(bytes.Repeat(b, n)) }
	header := bytesField(4, string(cat(bytesField(1, "k"), bytesField(2, "v"))))
	for _, c := range []struct {
		name string
		typ  uint16
		raw  []byte
		ok   bool
	}{
		{"headers", TypeCall, []byte(repeat(40_000, header)), true},
		{"too many headers", TypeCall, []byte(repeat(50_000, header)), false},
		{"futures", TypeSuspension, bytesField(4, string(cat(bytesField(1, "\x01"), []byte(repeat(100_000, bytesField(4, "")))))), true},
		{"too many futures", TypeSuspension, bytesField(4, repeat(200_000, bytesField(4, ""))), false},
		{"too many futures at two levels", TypeAwaitingOn, bytesField(1, repeat(400, bytesField(4, repeat(400, bytesField(4, ""))))), false},
		{"too many names", TypeSuspension, []byte(repeat(200_000, bytesField(3, ""))), false},
		{"too much metadata", TypeProposeRunCompletion, bytesField(15, repeat(200_000, bytesField(3, ""))), false},
		{"state keys", TypeGetEagerStateKeys, bytesField(14, repeat(1_000_000, bytesField(1, "k"))), true},
		{"ids", TypeSuspension, bytesField(1, repeat(1_000_000, []byte{1})), true},
	} {
		if err := CheckForm(c.typ, c.raw); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func nested(depth int) []byte {
	b := bytesField(1, "\x01")
	for range depth - 1 {
		b = bytesField(4, string(b))
	}
	return b
}

// TestFutures: empty ones and ones that are nested too deep are told apart; a hostile depth is found
// before anything recurses into it.
func TestFutures(t *testing.T) {
	for _, c := range []struct {
		name    string
		version uint32
		raw     []byte
		want    error
	}{
		{"flat", 6, bytesField(1, "\x01"), nil},
		{"flat and empty", 6, nil, ErrEmptyFuture},
		{"a tree on V6", 6, bytesField(4, string(nested(1))), ErrEmptyFuture},
		{"flat on V7", 7, bytesField(1, "\x01"), ErrEmptyFuture},
		{"tree", 7, bytesField(4, string(nested(10))), nil},
		{"one too many", 7, bytesField(4, string(nested(11))), ErrFutureTooDeep},
		{"hostile", 7, bytesField(4, string(nested(3000))), ErrFutureTooDeep},
		{"only nodes", 7, bytesField(4, string(bytesField(4, ""))), ErrEmptyFuture},
	} {
		if _, err := SuspensionFuture(c.version, c.raw, 10); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	if err := CheckForm(TypeSuspension, bytesField(4, string(nested(3000)))); !errors.Is(err, ErrFutureTooDeep) {
		t.Errorf("hostile depth: %v", err)
	}
	f, err := AwaitedFuture(bytesField(1, string(cat(nested(2), varintField(5, 2)))), 10)
	if err != nil || f.Combinator != invocationpb.Future_ALL_COMPLETED || len(f.Nested) != 1 || f.Nested[0].Completions[0] != 1 {
		t.Errorf("got %v, %v", f, err)
	}
}

func TestRunProposal(t *testing.T) {
	id, v, f, err := RunProposal(cat(varintField(1, 7), bytesField(14, "42")))
	if id != 7 || string(v) != "42" || f != nil || err != nil {
		t.Errorf("value: %d %q %v %v", id, v, f, err)
	}
	failure := &protocolpb.Failure{Code: 70000, Message: "m", Metadata: []*protocolpb.FailureMetadata{{Key: "k", Value: "v"}}}
	raw, _ := (&protocolpb.ProposeRunCompletion{ResultCompletionId: 7, Result: &protocolpb.ProposeRunCompletion_Failure{Failure: failure}}).MarshalVT()
	id, v, f, err = RunProposal(raw)
	if id != 7 || v != nil || err != nil || f.GetCode() != 500 || f.GetMessage() != "m" || len(f.GetMetadata()) != 1 {
		t.Errorf("failure: %d %q %v %v", id, v, f, err)
	}
}

func TestIdentifyNotification(t *testing.T) {
	for _, c := range []struct {
		raw  []byte
		want NotificationID
	}{
		{Completion(3, nil), NotificationID{Kind: ByCompletion, Number: 3}},
		{SignalIndex(17, nil), NotificationID{Kind: BySignalIndex, Number: 17}},
		{SignalName("n", nil), NotificationID{Kind: BySignalName, Name: "n"}},
		{nil, NotificationID{}},
		{[]byte{0xff}, NotificationID{}},
	} {
		if got := IdentifyNotification(c.raw); got != c.want {
			t.Errorf("%x: got %+v, want %+v", c.raw, got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for typ, want := range map[uint16]string{
		TypeSetState: "Command: SetState", TypeSleepCompletion: "Notification: Sleep", TypeSignal: "Notification: Signal",
		TypeCallInvocationIDCompletion: "Notification: CallInvocationId", 0x0415: "",
	} {
		if got := Label(typ); got != want {
			t.Errorf("Label(%#x) = %q, want %q", typ, got, want)
		}
	}
	if got := Name(0x0055); got != "0x0055" {
		t.Errorf("unknown type is called %q", got)
	}
	for typ := range 1 << 16 {
		if c := CompletionType(uint16(typ)); c != 0 && (!Known(c) || !IsNotification(c) || !IsCommand(uint16(typ))) {
			t.Errorf("CompletionType(%#x) = %#x", typ, c)
		}
	}
}

// FuzzSplit: a stream of anything is split without a panic, and what was split is the stream.
func FuzzSplit(f *testing.F) {
	for _, x := range loadExchanges(f) {
		f.Add(unhex(f, x.ToServer), uint32(1000))
	}
	f.Fuzz(func(t *testing.T, b []byte, limit uint32) {
		var again []byte
		rest := b
		for {
			fr, r, need, ok, err := Split(rest, limit)
			if err != nil {
				return
			}
			if !ok {
				if need <= len(rest) {
					t.Fatalf("needs %d of %d bytes", need, len(rest))
				}
				break
			}
			if uint32(len(fr.Payload)) >= limit {
				t.Fatalf("payload of %d bytes with limit %d", len(fr.Payload), limit)
			}
			again = append(AppendHeader(again, fr.Type, fr.Flags, len(fr.Payload)), fr.Payload...)
			rest = r
		}
		if !bytes.Equal(append(again, rest...), b) {
			t.Fatal("the frames are not the stream")
		}
	})
}

// FuzzCheck holds layouts.go and the generated code together: what the check accepts is decoded by the
// generated code, with the required parts there, and the helpers read the same as it.
func FuzzCheck(f *testing.F) {
	for _, x := range loadExchanges(f) {
		for _, fr := range splitAll(f, append(unhex(f, x.ToServer), unhex(f, x.ToEndpoint)...)) {
			f.Add(fr.Type, fr.Payload)
		}
	}
	f.Fuzz(func(t *testing.T, typ uint16, raw []byte) {
		IdentifyNotification(raw)
		if CheckForm(typ, raw) != nil {
			return
		}
		m := newMessage(typ)
		if err := m.UnmarshalVT(raw); err != nil {
			t.Fatalf("accepted %s %x, but it does not decode: %v", Name(typ), raw, err)
		}
		agree(t, typ, raw, m)
	})
}

func agree(t *testing.T, typ uint16, raw []byte, m any) {
	t.Helper()
	var complete bool
	switch m := m.(type) {
	case *protocolpb.OutputCommand:
		complete = m.GetValue() != nil || m.GetFailure() != nil
	case *protocolpb.SetStateCommand:
		complete = m.Value != nil
	case *protocolpb.GetEagerStateCommand:
		complete = m.Result != nil
	case *protocolpb.GetEagerStateKeysCommand:
		complete = m.Value != nil
	case *protocolpb.CompletePromiseCommand:
		complete = m.Completion != nil
	case *protocolpb.SendSignalCommand:
		complete = m.SignalId != nil && m.Result != nil
	case *protocolpb.AttachInvocationCommand:
		complete = m.Target != nil
	case *protocolpb.GetInvocationOutputCommand:
		complete = m.Target != nil
	case *protocolpb.CompleteAwakeableCommand:
		complete = m.Result != nil
	case *protocolpb.ProposeRunCompletion:
		id, _, failure, err := RunProposal(raw)
		complete = m.Result != nil && id == m.ResultCompletionId && err == nil
		if failure != nil && m.GetFailure() == nil {
			t.Fatalf("RunProposal(%x) is a failure", raw)
		}
	case *protocolpb.CallCommand:
		c := CallOf(typ, raw)
		complete = c.Service == m.ServiceName && c.Handler == m.HandlerName && c.Key == m.Key && same(c.IdempotencyKey, m.IdempotencyKey)
	case *protocolpb.OneWayCallCommand:
		c := CallOf(typ, raw)
		complete = c.Service == m.ServiceName && c.Handler == m.HandlerName && c.Key == m.Key && same(c.IdempotencyKey, m.IdempotencyKey)
	case *protocolpb.RunCommand:
		complete = CommandName(raw) == m.Name
	case *protocolpb.Suspension:
		_, _ = SuspensionFuture(6, raw, 100)
		_, _ = SuspensionFuture(7, raw, 100)
		complete = true
	case *protocolpb.AwaitingOn:
		_, _ = AwaitedFuture(raw, 100)
		complete = m.AwaitingOn != nil
	default:
		complete = true
	}
	if !complete {
		t.Fatalf("accepted %s %x, but the generated code reads it differently: %v", Name(typ), raw, m)
	}
}

func same(a, b *string) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }

func BenchmarkSplitAndCheck(b *testing.B) {
	stream := AppendFrame(nil, TypeOutput, bytesField(14, string(bytesField(1, strings.Repeat("x", 100)))))
	stream = AppendFrame(stream, TypeEnd, nil)
	b.ReportAllocs()
	for b.Loop() {
		f, rest, _, _, _ := Split(stream, 32<<20)
		if err := CheckCommand(f.Type, f.Payload); err != nil {
			b.Fatal(err)
		}
		if f, _, _, _, _ = Split(rest, 32<<20); f.Type != TypeEnd {
			b.Fatal(f.Type)
		}
	}
}
