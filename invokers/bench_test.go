package invokers

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/transport"
)

// cannedStream answers every request with the same bytes, without a goroutine or a wait: what is left is the
// invoker's own work.
type cannedStream struct {
	body     []byte
	read     int
	readable chan struct{}
}

var cannedResponse = transport.Response{Status: 200, Version: transport.HTTP2, Header: []transport.Field{
	{Name: "content-type", Value: "application/vnd.restate.invocation.v6"},
	{Name: "x-restate-server", Value: "bench/1"},
}}

func (s *cannedStream) Write([]byte) error                    { return nil }
func (s *cannedStream) CloseWrite() error                     { return nil }
func (s *cannedStream) Response() (transport.Response, error) { return cannedResponse, nil }
func (s *cannedStream) Buffered() int                         { return len(s.body) - s.read }
func (s *cannedStream) Readable() <-chan struct{}             { return s.readable }
func (s *cannedStream) Cancel()                               {}

func (s *cannedStream) Read(p []byte) (int, error) {
	n := copy(p, s.body[s.read:])
	s.read += n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

type cannedTransport struct {
	body []byte
	pool sync.Pool
}

func (c *cannedTransport) Open(context.Context, transport.Endpoint, transport.Request) (transport.Stream, error) {
	s, _ := c.pool.Get().(*cannedStream)
	if s == nil {
		s = &cannedStream{}
	}
	s.body, s.read = c.body, 0
	return s, nil
}

// directHost applies at once.
type directHost struct {
	p    *Partition
	done chan struct{}
}

func (h *directHost) ReadJournal(ident.InvocationID, EagerLimit, func(int) bool) (*Journal, error) {
	panic("not needed")
}

func (h *directHost) Propose(_ context.Context, id ident.InvocationID, incarnation, sequence uint64, effects []*invocationpb.Effect) error {
	h.p.Applied(id, incarnation, sequence)
	if last := effects[len(effects)-1]; last.GetEnd() != nil || last.GetSuspended() != nil {
		h.done <- struct{}{}
	}
	return nil
}

func benchmarkAttempt(b *testing.B, payload int, frames ...[]byte) {
	w := &testSchema{}
	w.set(deployment())
	tr := &cannedTransport{body: []byte(strings.Join(toStrings(frames), ""))}
	pool, err := NewPool(DefaultConfig("localcluster"), Deps{Schema: w, Transport: tr})
	if err != nil {
		b.Fatal(err)
	}
	h := &directHost{done: make(chan struct{}, 1)}
	h.p = pool.Open(0, h)
	defer h.p.Close()
	j := &Journal{Incarnation: 1, Target: plain(), Entries: []Entry{{Type: protocol.TypeInput, Raw: make([]byte, payload)}}}
	n := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		j := *j
		j.ID = ident.InvocationID{15: byte(n >> 16), 16: byte(n >> 8), 17: byte(n)}
		h.p.Invoke(j.ID, 1, "Svc", ident.DeploymentID{}, &j)
		<-h.done
	}
}

func toStrings(bs [][]byte) (out []string) {
	for _, b := range bs {
		out = append(out, string(b))
	}
	return out
}

// BenchmarkEcho is one attempt of the shortest handler: Start and Input up, Output and End down.
func BenchmarkEcho(b *testing.B) {
	benchmarkAttempt(b, 100, output(strings.Repeat("x", 100)), endFrame)
}

// BenchmarkSteps is an attempt with ten commands in one piece.
func BenchmarkSteps(b *testing.B) {
	var frames [][]byte
	for i := range uint32(10) {
		frames = append(frames, runFrame(i+1))
	}
	benchmarkAttempt(b, 100, append(frames, output("x"), endFrame)...)
}

func BenchmarkPayload(b *testing.B) {
	for _, n := range []int{10 << 10, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			benchmarkAttempt(b, 100, output(strings.Repeat("x", n)), endFrame)
		})
	}
}
