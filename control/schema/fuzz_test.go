package schema

import (
	"bytes"
	"testing"
)

func FuzzDecodeIndex(f *testing.F) {
	if b, err := EncodeIndex(map[string]uint64{"dp_1": 7}); err == nil {
		f.Add(b)
	}
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := DecodeIndex(data)
		if err != nil {
			return
		}
		first, err := EncodeIndex(x.Deployments)
		if err != nil {
			t.Fatalf("decoded but does not encode: %v", err)
		}
		back, err := DecodeIndex(first)
		if err != nil {
			t.Fatalf("own encoding is refused: %v", err)
		}
		if second, err := EncodeIndex(back.Deployments); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("encoding is not stable: %s, %s, %v", first, second, err)
		}
	})
}
