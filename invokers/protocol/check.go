package protocol

import (
	"errors"
	"fmt"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol/protocolpb"
)

// CheckError is a received message that must not be believed. The attempt fails with it.
type CheckError struct {
	Type   uint16
	Reason string
	// Precondition says that the message is well formed but asks for something that cannot be done, which
	// has an error code of its own.
	Precondition bool
}

func (e *CheckError) Error() string {
	if e.Precondition {
		return e.Reason
	}
	return "malformed " + Name(e.Type) + ": " + e.Reason
}

// CheckCommand checks a command that an endpoint sent: a type that endpoints may send, well-formed protobuf,
// strings in UTF-8, enums in range, required parts present, identifiers that parse. What passes is decoded by
// the generated code and can be applied without another check of its form. Whether the invocation may use
// the command and whether a callee exists is not checked here. The error is a *CheckError.
//
// It does not allocate unless it fails.
func CheckCommand(typ uint16, raw []byte) error {
	if typ == TypeInput || !IsCommand(typ) {
		return &CheckError{Type: typ, Reason: "an endpoint must not send it"}
	}
	if err := CheckForm(typ, raw); err != nil {
		return err
	}
	switch typ {
	case TypeSendSignal:
		id, _ := last(raw, 1)
		if _, err := ident.ParseInvocationID(string(id)); err != nil {
			return &CheckError{Type: typ, Reason: fmt.Sprintf("target invocation id %q: %v", id, err)}
		}
	case TypeAttachInvocation, TypeGetInvocationOutput:
		return checkTarget(typ, raw)
	case TypeCompleteAwakeable:
		id, _ := last(raw, 1)
		if _, err := ident.ParseAwakeable(string(id)); err != nil {
			return &CheckError{Type: typ, Reason: fmt.Sprintf("awakeable id %q: %v", id, err)}
		}
	}
	return nil
}

func checkTarget(typ uint16, raw []byte) error {
	id, ok := last(raw, 1)
	if !ok {
		return nil
	}
	if _, err := ident.ParseInvocationID(string(id)); err != nil {
		return &CheckError{Type: typ, Precondition: true, Reason: fmt.Sprintf("bad invocation id %q: %v", id, err)}
	}
	return nil
}

// CheckForm checks the form of a message of any type that can be received or journalled except
// notifications: protobuf, UTF-8, enums, required parts. The error is a *CheckError or ErrFutureTooDeep.
func CheckForm(typ uint16, raw []byte) error {
	l := layouts.of(typ)
	if l == nil {
		return &CheckError{Type: typ, Reason: "the type is not known"}
	}
	switch p := l.check(raw); p {
	case "":
		return nil
	case tooDeep:
		return ErrFutureTooDeep
	default:
		return &CheckError{Type: typ, Reason: string(p)}
	}
}

// CommandName is the label that the SDK gave a command, possibly empty. raw was checked.
func CommandName(raw []byte) string {
	name, _ := last(raw, 12)
	return string(name)
}

// Call is what has to be known of a Call or OneWayCall to resolve its callee.
type Call struct {
	Service, Handler, Key string
	IdempotencyKey        *string
	Scope, LimitKey       *string // V7
}

// CallOf reads a checked Call or OneWayCall without copying its parameter.
func CallOf(typ uint16, raw []byte) Call {
	shift := 0
	if typ == TypeOneWayCall {
		shift = 1
	}
	var c Call
	for f := range fieldsOf(raw) {
		switch f.num {
		case 1:
			c.Service = string(f.bytes)
		case 2:
			c.Handler = string(f.bytes)
		case 5 + shift:
			c.Key = string(f.bytes)
		case 6 + shift:
			c.IdempotencyKey = ptr(f.bytes)
		case 7 + shift:
			c.Scope = ptr(f.bytes)
		case 8 + shift:
			c.LimitKey = ptr(f.bytes)
		}
	}
	return c
}

func ptr(b []byte) *string { s := string(b); return &s }

// RunProposal reads a checked ProposeRunCompletion. value aliases raw; failure is nil for a value.
func RunProposal(raw []byte) (completionID uint32, value []byte, failure *invocationpb.Failure, err error) {
	completionID = uint32(lastNumber(raw, 1))
	if v, ok := last(raw, 14); ok && !has(raw, 15) {
		return completionID, v, nil, nil
	}
	var m protocolpb.ProposeRunCompletion
	if err := m.UnmarshalVT(raw); err != nil {
		return 0, nil, nil, fmt.Errorf("decode run proposal: %w", err)
	}
	if f := m.GetFailure(); f != nil {
		return completionID, nil, FailureOf(f), nil
	}
	return completionID, m.GetValue(), nil, nil
}

// Errors of a suspension's or an awaiting-on's future.
var (
	// ErrEmptyFuture: the invocation would wait for nothing.
	ErrEmptyFuture = errors.New("the suspension awaits nothing")
	// ErrFutureTooDeep: the tree is nested deeper than the limit.
	ErrFutureTooDeep = errors.New("the awaited future is nested too deep")
)

// SuspensionFuture is what a checked Suspension of the negotiated version waits for. The flat lists of V5 and
// V6 become one node of kind UNKNOWN. depth bounds the nesting.
func SuspensionFuture(version uint32, raw []byte, depth int) (*invocationpb.Future, error) {
	var m protocolpb.Suspension
	if err := unmarshalBounded(&m, raw, 4, depth); err != nil {
		return nil, err
	}
	if version < 7 {
		f := &invocationpb.Future{Completions: m.WaitingCompletions, Signals: m.WaitingSignals, NamedSignals: m.WaitingNamedSignals}
		if emptyFuture(f) {
			return nil, ErrEmptyFuture
		}
		return f, nil
	}
	if m.AwaitingOn == nil {
		return nil, ErrEmptyFuture
	}
	return futureOf(m.AwaitingOn)
}

// AwaitedFuture is the future of a checked AwaitingOn.
func AwaitedFuture(raw []byte, depth int) (*invocationpb.Future, error) {
	var m protocolpb.AwaitingOn
	if err := unmarshalBounded(&m, raw, 1, depth); err != nil {
		return nil, err
	}
	return futureOf(m.AwaitingOn)
}

// unmarshalBounded decodes raw after looking at how deep the future in field num is nested; the generated
// decoder recurses without a bound.
func unmarshalBounded(m interface{ UnmarshalVT([]byte) error }, raw []byte, num int, depth int) error {
	if futureDepth(raw, num, depth) > depth {
		return ErrFutureTooDeep
	}
	if err := m.UnmarshalVT(raw); err != nil {
		return fmt.Errorf("decode awaited future: %w", err)
	}
	return nil
}

// futureDepth is the depth of the submessage in field num of raw, counted to at most max+1.
func futureDepth(raw []byte, num, max int) int {
	if max < 0 {
		return 0
	}
	deepest := 0
	for f := range fieldsOf(raw) {
		if f.num != num || f.bytes == nil {
			continue
		}
		if d := 1 + futureDepth(f.bytes, 4, max-1); d > deepest {
			deepest = d
		}
		if deepest > max {
			return deepest
		}
	}
	return deepest
}

func futureOf(f *protocolpb.Future) (*invocationpb.Future, error) {
	out := convertFuture(f)
	if emptyFuture(out) {
		return nil, ErrEmptyFuture
	}
	return out, nil
}

func convertFuture(f *protocolpb.Future) *invocationpb.Future {
	out := &invocationpb.Future{
		Completions:  f.GetWaitingCompletions(),
		Signals:      f.GetWaitingSignals(),
		NamedSignals: f.GetWaitingNamedSignals(),
		Combinator:   invocationpb.Future_Combinator(f.GetCombinatorType()),
	}
	for _, n := range f.GetNestedFutures() {
		out.Nested = append(out.Nested, convertFuture(n))
	}
	return out
}

// emptyFuture reports whether no leaf is left anywhere in f.
func emptyFuture(f *invocationpb.Future) bool {
	if len(f.Completions)+len(f.Signals)+len(f.NamedSignals) > 0 {
		return false
	}
	for _, n := range f.Nested {
		if !emptyFuture(n) {
			return false
		}
	}
	return true
}
