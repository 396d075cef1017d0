package protocol

import (
	"iter"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// kind is how a field's bytes are read.
type kind uint8

const (
	kVarint  kind = iota + 1 // uint32, uint64, bool
	kEnum                    // value 0 to max
	kNumbers                 // repeated uint32, packed or not
	kString                  // valid UTF-8
	kBytes
	kMessage
)

// field is one field of a layout. A layout whose fields have a group other than 0 needs at least one field
// of each group to be present.
type field struct {
	num   protowire.Number
	kind  kind
	group uint8
	max   uint64  // of kEnum
	sub   *layout // of kMessage
}

// layout is what the payload of a message must look like. It repeats protocolpb/protocol.proto in a form
// that is checked without decoding: no allocation, no copy of payloads. A fuzz test holds the two together:
// what check accepts, the generated code decodes.
type layout struct {
	fields []field
	groups uint8 // bit g-1 is set for each group g that must be present
}

func message(fields ...field) *layout {
	l := &layout{fields: fields}
	for _, f := range fields {
		if f.group != 0 {
			l.groups |= 1 << (f.group - 1)
		}
	}
	return l
}

func num(n protowire.Number) field  { return field{num: n, kind: kVarint} }
func nums(n protowire.Number) field { return field{num: n, kind: kNumbers} }
func text(n protowire.Number) field { return field{num: n, kind: kString} }
func blob(n protowire.Number) field { return field{num: n, kind: kBytes} }
func enum(n protowire.Number, max uint64) field {
	return field{num: n, kind: kEnum, max: max}
}
func sub(n protowire.Number, l *layout) field { return field{num: n, kind: kMessage, sub: l} }

// in puts f into a group of which one field must be present.
func (f field) in(group uint8) field { f.group = group; return f }

// maxNesting bounds the depth of submessages that check follows. The deepest legal message is a future,
// whose depth has its own limit.
const maxNesting = 2000

// problem says what check found; the empty one is "nothing".
type problem string

const (
	malformed problem = "is not a valid protobuf message"
	badUTF8   problem = "has a string that is not UTF-8"
	badEnum   problem = "has an enum value out of range"
	missing   problem = "misses a required field"
	tooDeep   problem = "is nested too deep"
	tooMany   problem = "has more parts than the server takes (submessages and strings)"
)

// maxParts bounds the submessages and strings of a message. Each costs two bytes on the wire and some hundred in
// memory when it is decoded, by every replica: without a bound, 32 MiB of them would be gigabytes.
const maxParts = 1 << 17

// check looks at a whole payload.
func (l *layout) check(b []byte) problem {
	parts := maxParts
	return l.walk(b, 0, &parts)
}

// walk looks at a message that may have so many more parts.
func (l *layout) walk(b []byte, depth int, parts *int) problem {
	if depth > maxNesting {
		return tooDeep
	}
	var present uint8
	for len(b) > 0 {
		n, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return malformed
		}
		b = b[size:]
		size = protowire.ConsumeFieldValue(n, typ, b)
		if size < 0 {
			return malformed
		}
		if f := l.find(n); f != nil {
			if f.group != 0 {
				present |= 1 << (f.group - 1)
			}
			if p := f.check(typ, b[:size], depth, parts); p != "" {
				return p
			}
		}
		b = b[size:]
	}
	if present != l.groups {
		return missing
	}
	return ""
}

func (l *layout) find(n protowire.Number) *field {
	for i := range l.fields {
		if l.fields[i].num == n {
			return &l.fields[i]
		}
	}
	return nil
}

// check looks at one occurrence of f; b is its value as it stands on the wire, already known to be complete.
func (f *field) check(typ protowire.Type, b []byte, depth int, parts *int) problem {
	if f.kind == kVarint || f.kind == kEnum {
		v, size := protowire.ConsumeVarint(b)
		switch {
		case typ != protowire.VarintType || size < 0:
			return malformed
		case f.kind == kEnum && v > f.max:
			return badEnum
		}
		return ""
	}
	if f.kind == kNumbers && typ == protowire.VarintType {
		return ""
	}
	if typ != protowire.BytesType {
		return malformed
	}
	v, size := protowire.ConsumeBytes(b)
	if size < 0 {
		return malformed
	}
	if f.kind == kString || f.kind == kMessage {
		if *parts--; *parts < 0 {
			return tooMany
		}
	}
	switch f.kind {
	case kString:
		if !utf8.Valid(v) {
			return badUTF8
		}
	case kMessage:
		return f.sub.walk(v, depth+1, parts)
	case kNumbers:
		return checkPacked(v)
	}
	return ""
}

func checkPacked(b []byte) problem {
	for len(b) > 0 {
		_, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return malformed
		}
		b = b[n:]
	}
	return ""
}

// wireField is one field of a payload: bytes is the content of a length-delimited field (never nil), number
// the value of a varint.
type wireField struct {
	num    int
	bytes  []byte
	number uint64
}

// fieldsOf iterates over the fields of b in the order of the wire and stops silently at the first damaged
// one. bytes alias b.
func fieldsOf(b []byte) iter.Seq[wireField] {
	return func(yield func(wireField) bool) {
		for len(b) > 0 {
			n, typ, size := protowire.ConsumeTag(b)
			if size < 0 {
				return
			}
			b = b[size:]
			if size = protowire.ConsumeFieldValue(n, typ, b); size < 0 {
				return
			}
			f := wireField{num: int(n)}
			switch typ {
			case protowire.BytesType:
				f.bytes, _ = protowire.ConsumeBytes(b)
			case protowire.VarintType:
				f.number, _ = protowire.ConsumeVarint(b)
			}
			if !yield(f) {
				return
			}
			b = b[size:]
		}
	}
}

// last is the last occurrence of a length-delimited field of a checked payload; it aliases b.
func last(b []byte, num int) (v []byte, ok bool) {
	for f := range fieldsOf(b) {
		if f.num == num && f.bytes != nil {
			v, ok = f.bytes, true
		}
	}
	return v, ok
}

// lastNumber is the last occurrence of a varint field of a checked payload; 0 when absent.
func lastNumber(b []byte, num int) (v uint64) {
	for f := range fieldsOf(b) {
		if f.num == num && f.bytes == nil {
			v = f.number
		}
	}
	return v
}

// has reports whether a length-delimited field is present.
func has(b []byte, num int) bool {
	_, ok := last(b, num)
	return ok
}

// layouts holds the tables of messages; it is built once and never changed.
var layouts = buildLayouts()

type layoutTable struct {
	control [8]*layout
	command [21]*layout
}

func (t *layoutTable) of(typ uint16) *layout {
	switch {
	case int(typ) < len(t.control):
		return t.control[typ]
	case typ >= TypeInput && int(typ-TypeInput) < len(t.command):
		return t.command[typ-TypeInput]
	}
	return nil
}

func buildLayouts() *layoutTable {
	value, void := message(blob(1)), message()
	failure := message(num(1), text(2), sub(3, message(text(1), text(2))))
	header := message(text(1), text(2))
	future := message(nums(1), nums(2), text(3), field{}, enum(5, 4))
	future.fields[3] = sub(4, future)
	idempotent := message(text(1), text(2), text(3), text(4), text(5))
	workflow := message(text(1), text(2), text(3))
	target := func() *layout {
		return message(text(1).in(1), sub(3, idempotent).in(1), sub(4, workflow).in(1), num(11), text(12))
	}
	t := &layoutTable{}
	t.control[TypeSuspension] = message(nums(1), nums(2), text(3), sub(4, future))
	t.control[TypeError] = message(num(1), text(2), text(3), num(4), text(5), num(6), num(8), enum(9, 2))
	t.control[TypeEnd] = message()
	t.control[TypeProposeRunCompletion] = message(num(1), blob(14).in(1), sub(15, failure).in(1))
	t.control[TypeAwaitingOn] = message(sub(1, future).in(1), num(2))

	command := func(typ uint16, fields ...field) { t.command[typ-TypeInput] = message(fields...) }
	command(TypeInput, sub(1, header), text(12), sub(14, value).in(1))
	command(TypeOutput, text(12), sub(14, value).in(1), sub(15, failure).in(1))
	command(TypeGetLazyState, blob(1), num(11), text(12))
	command(TypeSetState, blob(1), sub(3, value).in(1), text(12))
	command(TypeClearState, blob(1), text(12))
	command(TypeClearAllState, text(12))
	command(TypeGetLazyStateKeys, num(11), text(12))
	command(TypeGetEagerState, blob(1), text(12), sub(13, void).in(1), sub(14, value).in(1))
	command(TypeGetEagerStateKeys, text(12), sub(14, message(blob(1))).in(1))
	command(TypeGetPromise, text(1), num(11), text(12))
	command(TypePeekPromise, text(1), num(11), text(12))
	command(TypeCompletePromise, text(1), sub(2, value).in(1), sub(3, failure).in(1), num(11), text(12))
	command(TypeSleep, num(1), num(11), text(12))
	command(TypeCall, text(1), text(2), blob(3), sub(4, header), text(5), text(6), text(7), text(8), num(10), num(11), text(12))
	command(TypeOneWayCall, text(1), text(2), blob(3), num(4), sub(5, header), text(6), text(7), text(8), text(9), num(10), text(12))
	command(TypeSendSignal, text(1), num(2).in(1), text(3).in(1), sub(4, void).in(2), sub(5, value).in(2), sub(6, failure).in(2), text(12))
	command(TypeRun, num(11), text(12))
	t.command[TypeAttachInvocation-TypeInput] = target()
	t.command[TypeGetInvocationOutput-TypeInput] = target()
	command(TypeCompleteAwakeable, text(1), sub(2, value).in(1), sub(3, failure).in(1), text(12))
	return t
}
