package invokers

import (
	"testing"
	"time"

	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
)

func knownEntries(t testing.TB, start protocol.Frame) uint32 {
	return startOf(t, start).GetKnownEntries()
}

func startOf(t testing.TB, f protocol.Frame) *protocolpb.Start {
	t.Helper()
	m := &protocolpb.Start{}
	if err := m.UnmarshalVT(f.Payload); err != nil {
		t.Errorf("decode Start: %v", err)
	}
	return m
}

func frame(typ uint16, m protocol.Message) []byte { return protocol.AppendMessage(nil, typ, m) }

// withAck sets the flag that asks for an acknowledgement.
func withAck(f []byte) []byte { f[2] |= 0x80; return f }

func output(v string) []byte {
	return frame(protocol.TypeOutput, &protocolpb.OutputCommand{Result: &protocolpb.OutputCommand_Value{Value: &protocolpb.Value{Content: []byte(v)}}})
}

var endFrame = protocol.AppendFrame(nil, protocol.TypeEnd, nil)

func sleepFrame(id uint32) []byte {
	return frame(protocol.TypeSleep, &protocolpb.SleepCommand{WakeUpTime: 1, ResultCompletionId: id})
}

func runFrame(id uint32) []byte {
	return frame(protocol.TypeRun, &protocolpb.RunCommand{ResultCompletionId: id, Name: "r"})
}

func proposeFrame(id uint32, v string) []byte {
	return frame(protocol.TypeProposeRunCompletion, &protocolpb.ProposeRunCompletion{
		ResultCompletionId: id, Result: &protocolpb.ProposeRunCompletion_Value{Value: []byte(v)},
	})
}

func suspendFrame(completions ...uint32) []byte {
	return frame(protocol.TypeSuspension, &protocolpb.Suspension{WaitingCompletions: completions, WaitingSignals: []uint32{1}})
}

func errorFrame(m *protocolpb.Error) []byte { return frame(protocol.TypeError, m) }

func sleepDone(id uint32) Entry {
	return Entry{Type: protocol.TypeSleepCompletion, Raw: protocol.Completion(id, nil)}
}

// echo answers an invocation like the shortest handler.
func echo(v *service) {
	v.accept()
	v.replay()
	v.send(output("hi"), endFrame)
	v.halfClosed()
	v.end(eof)
}

// completesSleeps answers each Sleep at once.
func completesSleeps(e *invocationpb.Effect) []Entry {
	if c := e.GetCommand(); c != nil && uint16(c.Type) == protocol.TypeSleep {
		var m protocolpb.SleepCommand
		if m.UnmarshalVT(c.Raw) == nil {
			return []Entry{sleepDone(m.ResultCompletionId)}
		}
	}
	return nil
}

// elapse lets the clock of a synctest bubble advance.
func elapse(d time.Duration) { <-time.After(d) }
