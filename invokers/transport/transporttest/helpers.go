package transporttest

import (
	"context"
	"io"
	"net/http"
	"sync"

	"perdure/invokers/transport"
)

// start serves h for the rest of the test.
func (s *suite) start(h http.HandlerFunc) {
	s.t.Helper()
	s.tr, s.ep = s.serve(s.t, h)
}

var contentType = transport.Field{Name: "content-type", Value: "application/octet-stream"}

// open opens an exchange that is cancelled at the end of the test.
func (s *suite) open(ctx context.Context, path string, header ...transport.Field) transport.Stream {
	s.t.Helper()
	st, err := s.tr.Open(ctx, s.ep, transport.Request{Method: "POST", Path: path, Header: append(header, contentType)})
	if err != nil {
		s.t.Fatalf("open %s: %v", path, err)
	}
	s.t.Cleanup(st.Cancel)
	return st
}

// send writes body as the whole request.
func (s *suite) send(st transport.Stream, body []byte) {
	s.t.Helper()
	if err := st.Write(body); err != nil {
		s.t.Fatalf("write: %v", err)
	}
	if err := st.CloseWrite(); err != nil {
		s.t.Fatalf("close write: %v", err)
	}
}

func (s *suite) response(st transport.Stream, status int) transport.Response {
	s.t.Helper()
	resp, err := st.Response()
	if err != nil {
		s.t.Fatalf("response: %v", err)
	}
	if resp.Status != status {
		s.t.Fatalf("status %d, want %d", resp.Status, status)
	}
	return resp
}

func (s *suite) wantKind(err error, want ...transport.Kind) {
	s.t.Helper()
	got := transport.KindOf(err)
	for _, k := range want {
		if got == k {
			return
		}
	}
	s.t.Fatalf("error %v is of kind %d, want one of %v", err, got, want)
}

// wait blocks until ch is closed or gives a value.
func wait[T any](s *suite, ch <-chan T, what string) T {
	s.t.Helper()
	select {
	case v := <-ch:
		return v
	case <-s.ctx.Done():
		s.t.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}

// background runs f and returns a channel with its result.
func background[T any](s *suite, f func() T) <-chan T {
	ch := make(chan T, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ch <- f() })
	s.t.Cleanup(wg.Wait)
	return ch
}

// check reports an error of a handler, which must not call t.Fatal from its goroutine.
func (s *suite) check(err error) {
	if err != nil {
		s.t.Error(err)
	}
}

func readAll(st transport.Stream) ([]byte, error) {
	return io.ReadAll(reader{st})
}

// reader is a Stream as an io.Reader.
type reader struct{ transport.Stream }

// flush sends the header and what was written.
func flush(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush() // a handler of a request/response transport cannot flush and need not
}
