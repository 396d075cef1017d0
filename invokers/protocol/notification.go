package protocol

import (
	"google.golang.org/protobuf/encoding/protowire"

	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol/protocolpb"
)

// Field numbers that all notifications share.
const (
	numCompletionID = 1
	numSignalIdx    = 2
	numSignalName   = 3
	numVoid         = 4
	numValue        = 5
	numFailure      = 6
	numInvocationID = 16
	numStateKeys    = 17
)

// Completion is the payload of a notification that completes a completion id with a result. A nil result
// and a result without a kind are encoded as void.
func Completion(completionID uint32, r *invocationpb.Result) []byte {
	b := make([]byte, 0, 8+resultSize(r))
	return appendResult(appendUint32(b, numCompletionID, completionID), r)
}

// InvocationIDCompletion is the payload that answers the id of a call's callee.
func InvocationIDCompletion(completionID uint32, printableID string) []byte {
	b := make([]byte, 0, 12+len(printableID))
	b = appendUint32(b, numCompletionID, completionID)
	b = protowire.AppendTag(b, numInvocationID, protowire.BytesType)
	return protowire.AppendString(b, printableID)
}

// StateKeysCompletion is the payload that answers GetLazyStateKeys; keys are in byte order.
func StateKeysCompletion(completionID uint32, keys [][]byte) []byte {
	n := 0
	for _, k := range keys {
		n += 1 + protowire.SizeBytes(len(k))
	}
	b := make([]byte, 0, 20+n)
	b = appendUint32(b, numCompletionID, completionID)
	b = protowire.AppendTag(b, numStateKeys, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	for _, k := range keys {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendBytes(b, k)
	}
	return b
}

// SignalIndex is the payload of a signal that is named by a number.
func SignalIndex(idx uint32, r *invocationpb.Result) []byte {
	b := make([]byte, 0, 8+resultSize(r))
	return appendResult(appendUint32(b, numSignalIdx, idx), r)
}

// SignalName is the payload of a signal that is named by a string.
func SignalName(name string, r *invocationpb.Result) []byte {
	b := make([]byte, 0, 8+len(name)+resultSize(r))
	b = protowire.AppendTag(b, numSignalName, protowire.BytesType)
	return appendResult(protowire.AppendString(b, name), r)
}

func appendUint32(b []byte, num protowire.Number, v uint32) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), uint64(v))
}

func resultSize(r *invocationpb.Result) int {
	switch k := r.GetKind().(type) {
	case *invocationpb.Result_Success:
		return 12 + len(k.Success)
	case *invocationpb.Result_Failure:
		return 8 + failureSize(k.Failure)
	}
	return 2
}

func appendResult(b []byte, r *invocationpb.Result) []byte {
	switch k := r.GetKind().(type) {
	case *invocationpb.Result_Success:
		b = protowire.AppendTag(b, numValue, protowire.BytesType)
		if len(k.Success) == 0 {
			return append(b, 0)
		}
		b = protowire.AppendVarint(b, uint64(1+protowire.SizeBytes(len(k.Success))))
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		return protowire.AppendBytes(b, k.Success)
	case *invocationpb.Result_Failure:
		b = protowire.AppendTag(b, numFailure, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(failureSize(k.Failure)))
		return appendFailure(b, k.Failure)
	}
	b = protowire.AppendTag(b, numVoid, protowire.BytesType)
	return append(b, 0)
}

func failureSize(f *invocationpb.Failure) int {
	n := 0
	if f.GetCode() != 0 {
		n += 1 + protowire.SizeVarint(uint64(f.GetCode()))
	}
	if m := f.GetMessage(); m != "" {
		n += 1 + protowire.SizeBytes(len(m))
	}
	for _, h := range f.GetMetadata() {
		n += 1 + protowire.SizeBytes(headerSize(h))
	}
	return n
}

func headerSize(h *invocationpb.Header) int {
	n := 0
	if h.GetKey() != "" {
		n += 1 + protowire.SizeBytes(len(h.GetKey()))
	}
	if h.GetValue() != "" {
		n += 1 + protowire.SizeBytes(len(h.GetValue()))
	}
	return n
}

func appendFailure(b []byte, f *invocationpb.Failure) []byte {
	if f.GetCode() != 0 {
		b = appendUint32(b, 1, f.GetCode())
	}
	if m := f.GetMessage(); m != "" {
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendString(b, m)
	}
	for _, h := range f.GetMetadata() {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(headerSize(h)))
		if h.GetKey() != "" {
			b = protowire.AppendTag(b, 1, protowire.BytesType)
			b = protowire.AppendString(b, h.GetKey())
		}
		if h.GetValue() != "" {
			b = protowire.AppendTag(b, 2, protowire.BytesType)
			b = protowire.AppendString(b, h.GetValue())
		}
	}
	return b
}

// NotificationID names what a notification answers: exactly one of the three. Completion ids and signal
// indexes are different name spaces.
type NotificationID struct {
	Kind NotificationKind
	// Number is the completion id or the signal index.
	Number uint32
	// Name is the name of a named signal.
	Name string
}

// NotificationKind tells the name spaces of notifications apart.
type NotificationKind uint8

// The kinds of NotificationID.
const (
	NoNotification NotificationKind = iota
	ByCompletion
	BySignalIndex
	BySignalName
)

// IdentifyNotification reads what a stored notification answers, without decoding the result. Kind is
// NoNotification if raw is damaged or names nothing.
func IdentifyNotification(raw []byte) (id NotificationID) {
	for f := range fieldsOf(raw) {
		switch {
		case f.num == numCompletionID && f.bytes == nil:
			id = NotificationID{Kind: ByCompletion, Number: uint32(f.number)}
		case f.num == numSignalIdx && f.bytes == nil:
			id = NotificationID{Kind: BySignalIndex, Number: uint32(f.number)}
		case f.num == numSignalName && f.bytes != nil:
			id = NotificationID{Kind: BySignalName, Name: string(f.bytes)}
		}
	}
	return id
}

// Succeeded reports whether a notification carries a result that is not a failure. Void, values, state keys
// and invocation ids are successes.
func Succeeded(n *protocolpb.Notification) bool { return n.GetFailure() == nil }

// ResultOf is the result of a received oneof: void, a value's bytes, or a failure. Exactly one must be set;
// a present value may be empty.
func ResultOf(v *protocolpb.Value, f *protocolpb.Failure) *invocationpb.Result {
	switch {
	case f != nil:
		return &invocationpb.Result{Kind: &invocationpb.Result_Failure{Failure: FailureOf(f)}}
	case v != nil:
		return &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: v.GetContent()}}
	}
	return &invocationpb.Result{Kind: &invocationpb.Result_Void{Void: true}}
}

// FailureOf converts a received failure. Codes above 65535 are read as 500.
func FailureOf(f *protocolpb.Failure) *invocationpb.Failure {
	out := &invocationpb.Failure{Code: f.GetCode(), Message: f.GetMessage()}
	if out.Code > 0xFFFF {
		out.Code = 500
	}
	for _, m := range f.GetMetadata() {
		out.Metadata = append(out.Metadata, &invocationpb.Header{Key: m.GetKey(), Value: m.GetValue()})
	}
	return out
}
