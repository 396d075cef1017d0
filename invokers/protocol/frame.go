// Package protocol is the service protocol between the server and service endpoints, versions 5 to 7: the
// framing, the message types, and what may be believed of a received message. The payloads are the
// generated messages of the leaf package protocolpb.
//
// Both directions of an exchange are a plain concatenation of frames:
//
//	 0      2       4            8
//	+------+-------+------------+----------------- - -
//	| type | flags |   length   | payload (length bytes, protobuf)
//	+------+-------+------------+----------------- - -
//	  u16     u16       u32       all big endian; length does not count the header
//
// An endpoint is untrusted: lengths are checked before anything is allocated (Split), and a command is
// checked completely (CheckCommand) before it may enter the log, because what was logged must be applied by
// every replica for ever. Payloads of commands are stored and replayed verbatim; nothing here re-encodes one.
//
// The package is pure: no clock, no randomness, no I/O, no goroutine. A new message needs its type in
// types.go, its layout in protocolpb/protocol.proto and in layouts.go, and a fuzz seed from a captured stream.
package protocol

import (
	"encoding/binary"
	"fmt"
)

// HeaderLen is the number of bytes in front of each payload.
const HeaderLen = 8

// FlagRequestedAck is set by an endpoint on a command or run proposal that it wants acknowledged. The server
// never sets a flag.
const FlagRequestedAck uint16 = 0x8000

// Frame is one frame. Payload aliases the buffer that the frame was split from.
type Frame struct {
	Type    uint16
	Flags   uint16
	Payload []byte
}

// RequestedAck reports whether the sender wants an acknowledgement.
func (f Frame) RequestedAck() bool { return f.Flags&FlagRequestedAck != 0 }

// TooLargeError is a frame whose header announces at least as many bytes as the limit of messages.
type TooLargeError struct {
	Type   uint16
	Length uint32
	Limit  uint32
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("message %s of %d bytes reaches the message size limit of %d bytes; make the payload smaller or raise message-size-limit",
		Name(e.Type), e.Length, e.Limit)
}

// Split takes the first frame off b. ok is false when b does not hold a whole frame yet; need is then the
// number of bytes, from the start of b, that must be there for the next attempt to make progress. The limit
// is compared with the announced length before anything waits for the payload: a frame of limit bytes or
// more is a *TooLargeError.
func Split(b []byte, limit uint32) (f Frame, rest []byte, need int, ok bool, err error) {
	if len(b) < HeaderLen {
		return f, b, HeaderLen, false, nil
	}
	typ, n := binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[4:])
	if n >= limit {
		return f, b, 0, false, &TooLargeError{Type: typ, Length: n, Limit: limit}
	}
	end := HeaderLen + int(n)
	if len(b) < end {
		return f, b, end, false, nil
	}
	f = Frame{Type: typ, Flags: binary.BigEndian.Uint16(b[2:]), Payload: b[HeaderLen:end:end]}
	return f, b[end:], 0, true, nil
}

// AppendHeader appends the header of a frame whose payload has n bytes. n must fit into 32 bits.
func AppendHeader(dst []byte, typ, flags uint16, n int) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(typ)<<48|uint64(flags)<<32|uint64(uint32(n)))
}

// AppendFrame appends a frame without flags.
func AppendFrame(dst []byte, typ uint16, payload []byte) []byte {
	return append(AppendHeader(dst, typ, 0, len(payload)), payload...)
}

// Message is a generated message with its fast codec.
type Message interface {
	SizeVT() int
	MarshalToSizedBufferVT(b []byte) (int, error)
}

// AppendMessage appends the frame of m without flags. It encodes in place; dst grows as needed.
func AppendMessage(dst []byte, typ uint16, m Message) []byte {
	n := m.SizeVT()
	dst = AppendHeader(dst, typ, 0, n)
	start := len(dst)
	dst = append(dst, make([]byte, n)...)
	if _, err := m.MarshalToSizedBufferVT(dst[start:]); err != nil {
		panic(fmt.Sprintf("encode %s: %v", Name(typ), err)) // the generated code has no failing path for a sized buffer
	}
	return dst
}
