package fsm

import (
	"google.golang.org/protobuf/encoding/protowire"

	"perdure/invokers/invocationpb"
)

// Field numbers of the Input command and of a header in it.
const (
	inputHeaders = 1
	inputValue   = 14
	headerKey    = 1
	headerValue  = 2
	valueContent = 1
)

// inputCommand encodes the Input command that begins the journal of an invocation. Its value is always
// present, also when the argument is empty.
func inputCommand(x *invocationpb.Invocation) []byte {
	n := 2 + 2*10 + len(x.Argument)
	for _, h := range x.Headers {
		n += 1 + protowire.SizeBytes(headerSize(h))
	}
	b := make([]byte, 0, n)
	for _, h := range x.Headers {
		b = protowire.AppendTag(b, inputHeaders, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(headerSize(h)))
		b = appendString(b, headerKey, h.Key)
		b = appendString(b, headerValue, h.Value)
	}
	b = protowire.AppendTag(b, inputValue, protowire.BytesType)
	if len(x.Argument) == 0 {
		return append(b, 0)
	}
	b = protowire.AppendVarint(b, uint64(1+protowire.SizeBytes(len(x.Argument))))
	b = protowire.AppendTag(b, valueContent, protowire.BytesType)
	return protowire.AppendBytes(b, x.Argument)
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func headerSize(h *invocationpb.Header) int { return stringSize(h.Key) + stringSize(h.Value) }

func stringSize(s string) int {
	if s == "" {
		return 0
	}
	return 1 + protowire.SizeBytes(len(s))
}

func failure(code uint32, message string) *invocationpb.Result {
	return &invocationpb.Result{Kind: &invocationpb.Result_Failure{Failure: &invocationpb.Failure{Code: code, Message: message}}}
}

func success(b []byte) *invocationpb.Result {
	return &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: b}}
}

func void() *invocationpb.Result {
	return &invocationpb.Result{Kind: &invocationpb.Result_Void{Void: true}}
}
