package placement

import (
	"bytes"
	"testing"
)

func FuzzDecodeTable(f *testing.F) {
	f.Add([]byte(`{"format":1,"partitions":24,"replication":"1"}`))
	f.Add([]byte(`{"format":1,"partitions":65535,"replication":"{zone: 2}"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := DecodeTable(data)
		if err != nil {
			return
		}
		first, err := table.Encode()
		if err != nil {
			t.Fatalf("decoded but does not encode: %v", err)
		}
		back, err := DecodeTable(first)
		if err != nil {
			t.Fatalf("own encoding is refused: %v", err)
		}
		if second, err := back.Encode(); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("encoding is not stable: %s, %s, %v", first, second, err)
		}
	})
}
