// Package wire writes and reads service-protocol frames, and the protobuf fields in them, by hand.
//
// It is independent of the server's own codec on purpose: a test endpoint that shared it would share its mistakes. It
// knows the frame layout and the field encodings, not the messages, so it can also write what is malformed.
//
// A frame is a header of eight bytes and a payload:
//
//	type u16 | flags u16 | payload length u32 | payload      (big endian)
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Message types.
const (
	Start      uint16 = 0x0000
	Suspension uint16 = 0x0001
	Error      uint16 = 0x0002
	End        uint16 = 0x0003
	CommandAck uint16 = 0x0004
	ProposeRun uint16 = 0x0005
	ProposeAck uint16 = 0x0007

	Input             uint16 = 0x0400
	Output            uint16 = 0x0401
	GetLazyState      uint16 = 0x0402
	SetState          uint16 = 0x0403
	ClearState        uint16 = 0x0404
	ClearAllState     uint16 = 0x0405
	GetEagerState     uint16 = 0x0407
	GetPromise        uint16 = 0x0409
	CompletePromise   uint16 = 0x040B
	Sleep             uint16 = 0x040C
	Call              uint16 = 0x040D
	OneWayCall        uint16 = 0x040E
	SendSignal        uint16 = 0x0410
	Run               uint16 = 0x0411
	AttachInvocation  uint16 = 0x0412
	GetOutput         uint16 = 0x0413
	CompleteAwakeable uint16 = 0x0414

	// Notification is the bit that all notifications have.
	Notification        uint16 = 0x8000
	SleepCompletion     uint16 = 0x800C
	CallCompletion      uint16 = 0x800D
	CallInvocationID    uint16 = 0x800E
	RunCompletion       uint16 = 0x8011
	AttachCompletion    uint16 = 0x8012
	GetOutputCompletion uint16 = 0x8013
	Signal              uint16 = 0xFBFF
)

// RequestedAck is the flag by which an endpoint asks for an acknowledgement.
const RequestedAck uint16 = 0x8000

// MaxFrame is the longest payload ReadFrame accepts, in bytes.
const MaxFrame = 64 << 20

// Frame is one message.
type Frame struct {
	Type  uint16
	Flags uint16
	Body  []byte
}

func (f Frame) String() string { return fmt.Sprintf("%#04x(%x)", f.Type, f.Body) }

// ErrTooLong is returned for a frame longer than MaxFrame.
var ErrTooLong = errors.New("frame is too long")

// ReadFrame reads one frame. It returns io.EOF at the end of the stream and io.ErrUnexpectedEOF within a frame. The
// body is the caller's.
func ReadFrame(r io.Reader) (Frame, error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(h[4:])
	if n > MaxFrame {
		return Frame{}, fmt.Errorf("read frame of %d bytes: %w", n, ErrTooLong)
	}
	f := Frame{Type: binary.BigEndian.Uint16(h[:2]), Flags: binary.BigEndian.Uint16(h[2:4])}
	if n > 0 {
		f.Body = make([]byte, n)
		if _, err := io.ReadFull(r, f.Body); err != nil {
			return Frame{}, io.ErrUnexpectedEOF
		}
	}
	return f, nil
}

// AppendHeader appends a header that announces n bytes, whatever follows.
func AppendHeader(b []byte, typ, flags uint16, n uint32) []byte {
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint16(b, flags)
	return binary.BigEndian.AppendUint32(b, n)
}

// Append appends a frame.
func (f Frame) Append(b []byte) []byte {
	return append(AppendHeader(b, f.Type, f.Flags, uint32(len(f.Body))), f.Body...)
}

// Begin appends the header of a frame whose length Finish fills in, and returns where the body starts.
func Begin(b []byte, typ uint16) ([]byte, int) {
	b = AppendHeader(b, typ, 0, 0)
	return b, len(b)
}

// Finish sets the length of the frame whose body starts at the given place and goes to the end of b.
func Finish(b []byte, at int) []byte {
	binary.BigEndian.PutUint32(b[at-4:at], uint32(len(b)-at))
	return b
}

// AppendUint appends a varint field.
func AppendUint(b []byte, field int, v uint64) []byte {
	b = binary.AppendUvarint(b, uint64(field)<<3)
	return binary.AppendUvarint(b, v)
}

// AppendBytes appends a length-delimited field: bytes, a string or a message.
func AppendBytes[T []byte | string](b []byte, field int, v T) []byte {
	b = binary.AppendUvarint(b, uint64(field)<<3|2)
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// AppendValue appends a field that holds a Value message with the given content. Empty content is a present, empty
// message.
func AppendValue(b []byte, field int, content []byte) []byte {
	b = binary.AppendUvarint(b, uint64(field)<<3|2)
	if len(content) == 0 {
		return append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(1+uvarintLen(uint64(len(content)))+len(content)))
	return AppendBytes(b, 1, content)
}

func uvarintLen(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}

// ErrMalformed is returned for bytes that are not a protobuf message.
var ErrMalformed = errors.New("malformed protobuf message")

// Fields calls f for each field of a message in order: for varint and fixed fields u is set, for length-delimited ones
// b, which aliases msg. It stops at f's first error.
func Fields(msg []byte, f func(field int, u uint64, b []byte) error) error {
	for len(msg) > 0 {
		tag, n := binary.Uvarint(msg)
		if n <= 0 {
			return ErrMalformed
		}
		msg = msg[n:]
		var u uint64
		var b []byte
		size := 0
		switch tag & 7 {
		case 0:
			u, size = binary.Uvarint(msg)
			if size <= 0 {
				return ErrMalformed
			}
		case 1:
			if size = 8; len(msg) < size {
				return ErrMalformed
			}
			u = binary.LittleEndian.Uint64(msg)
		case 2:
			l, n := binary.Uvarint(msg)
			if n <= 0 || l > uint64(len(msg)-n) {
				return ErrMalformed
			}
			size = n + int(l)
			b = msg[n:size:size]
		case 5:
			if size = 4; len(msg) < size {
				return ErrMalformed
			}
			u = uint64(binary.LittleEndian.Uint32(msg))
		default:
			return ErrMalformed
		}
		msg = msg[size:]
		if err := f(int(tag>>3), u, b); err != nil {
			return err
		}
	}
	return nil
}

// Find returns the last field with the given number; b aliases msg.
func Find(msg []byte, number int) (u uint64, b []byte, found bool) {
	err := Fields(msg, func(field int, fu uint64, fb []byte) error {
		if field == number {
			u, b, found = fu, fb, true
		}
		return nil
	})
	return u, b, found && err == nil
}

// Content is the content of a Value message in the given field; nil if there is none.
func Content(msg []byte, field int) []byte {
	_, v, ok := Find(msg, field)
	if !ok {
		return nil
	}
	_, c, _ := Find(v, 1)
	if c == nil {
		c = []byte{}
	}
	return c
}
