package invokers

import (
	"io"
	"reflect"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

var eof = io.EOF

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEcho: a simple handler costs one proposal with everything in it, and no read of the store.
func TestEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, echo)
		id := invocationID(1)
		w.log.invoke(id, plain(), true)
		r := w.log.await(id, "ended")
		if got, want := w.log.kinds(), [][]string{{"pinned", "OutputCommandMessage", "end"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("proposed %v, want %v", got, want)
		}
		if r.Deployment != testDeployment || r.ProtocolVersion != 6 {
			t.Errorf("pinned to %s and version %d", r.Deployment, r.ProtocolVersion)
		}
		if w.log.reads != 0 {
			t.Errorf("%d reads of the store", w.log.reads)
		}
		synctest.Wait()
		if _, ok := w.partition.StatusOf(id); ok {
			t.Error("the invoker still knows the invocation")
		}
	})
}
