package bifrost

import (
	"fmt"
	"testing"
)

func TestAppendAndRead(t *testing.T) {
	n := single(t, t.TempDir())
	a := n.Appender(7, AppenderOptions{})
	r := n.Reader(7, 1)
	for i := range 100 {
		lsn := mustAppend(t, a, fmt.Sprint("record ", i))
		e := readNext(t, r)
		if e.Kind != Data || e.LSN != lsn || string(e.Record.Payload) != fmt.Sprint("record ", i) {
			t.Fatalf("append %d went to %d, read %v %d %q", i, lsn, e.Kind, e.LSN, e.Record.Payload)
		}
	}
}
