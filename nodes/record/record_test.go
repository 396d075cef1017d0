package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"perdure/nodes/record/recordpb"
)

func truncate(index uint64) *recordpb.Command {
	return &recordpb.Command{Kind: &recordpb.Command_TruncateOutbox{TruncateOutbox: &recordpb.TruncateOutbox{Index: index}}}
}

// The bytes of released versions must stay readable for ever.
func TestGolden(t *testing.T) {
	c := truncate(300)
	got, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	d := &recordpb.Dedup{Producer: &recordpb.Dedup_Self{Self: true}, Epoch: 7, Sequence: 1 << 40}
	if got, err = AppendDedup(got, d); err != nil {
		t.Fatal(err)
	}
	const want = "015a0308ac020a0b2007288080808080200801"
	if hex.EncodeToString(got) != want {
		t.Errorf("encoding changed:\n got %x\nwant %s", got, want)
	}
	raw, _ := hex.DecodeString(want)
	back, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	c.Dedup = d
	if !proto.Equal(back, c) {
		t.Errorf("decoded %v, want %v", back, c)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		err  error
	}{
		{"empty", nil, ErrMalformed},
		{"newer format", []byte{2, 0}, ErrFormat},
		{"unknown kind only", []byte{1, 0xfa, 0x3f, 0}, ErrFormat},
		{"cut", []byte{1, 0x5a, 3, 8}, ErrMalformed},
	} {
		if _, err := Decode(c.in); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
	}
}

func TestKeyed(t *testing.T) {
	if Keyed(truncate(1)) {
		t.Error("truncation of the outbox belongs to no key")
	}
	if !Keyed(&recordpb.Command{Kind: &recordpb.Command_Signal{Signal: &recordpb.Signal{}}}) {
		t.Error("a signal belongs to a key")
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := Encode(truncate(5))
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Decode(in)
		if err != nil {
			return
		}
		d := c.Dedup
		c.Dedup = nil
		again, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if d != nil {
			if again, err = AppendDedup(again, d); err != nil {
				t.Fatal(err)
			}
		}
		c2, err := Decode(again)
		if err != nil {
			t.Fatalf("re-encoding is not readable: %v", err)
		}
		c.Dedup = d
		b1, _ := proto.MarshalOptions{Deterministic: true}.Marshal(c)
		b2, _ := proto.MarshalOptions{Deterministic: true}.Marshal(c2)
		if !bytes.Equal(b1, b2) {
			t.Fatalf("round trip differs: %v, %v", c, c2)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	c := truncate(5)
	d := &recordpb.Dedup{Producer: &recordpb.Dedup_Self{Self: true}, Epoch: 7, Sequence: 1 << 40}
	b.ReportAllocs()
	for b.Loop() {
		p, _ := Encode(c)
		if _, err := AppendDedup(p, d); err != nil {
			b.Fatal(err)
		}
	}
}
