package ingress

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"perdure/control/cluster"
	"perdure/nodes/record/recordpb"
)

// BenchmarkCall is a call over one kept-alive loopback connection: server, ingress and a minimal client, with a partition that
// answers at once. The processor time of both is what tells on a machine that is not idle.
func BenchmarkCall(b *testing.B) {
	addr := serve(b, newIngress(b, instant{success(`"hi"`)}, nil))
	for _, c := range []struct {
		name string
		call func(testing.TB, net.Conn) func() error
	}{{"h1", callH1}, {"h2", callH2}} {
		b.Run(c.name, func(b *testing.B) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			call := c.call(b, conn)
			b.ReportAllocs()
			began := processorTime(b)
			for b.Loop() {
				if err := call(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(processorTime(b)-began)/float64(b.N), "cpu-ns/op")
		})
	}
}

// processorTime is what this process has used, in ns.
func processorTime(t testing.TB) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// callH1 makes a call over HTTP/1.1 without garbage of its own.
func callH1(_ testing.TB, c net.Conn) func() error {
	req := []byte("POST /Obj/some-key/add HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: bench\r\nAccept: */*\r\n" +
		"Content-Type: application/json\r\nContent-Length: 3\r\n\r\n\"x\"")
	r := bufio.NewReader(c)
	return func() error {
		if _, err := c.Write(req); err != nil {
			return err
		}
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return err
			}
			if len(line) == 2 {
				_, err := r.Discard(4)
				return err
			}
		}
	}
}

// callH2 makes a call over HTTP/2 without TLS, one at a time, with little garbage of its own.
func callH2(t testing.TB, c net.Conn) func() error {
	var head, out bytes.Buffer
	enc := hpack.NewEncoder(&head)
	enc.SetMaxDynamicTableSize(0) // so that the same bytes mean the same each time
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "localhost:8080"}, {":path", "/Obj/some-key/add"},
		{"user-agent", "bench"}, {"accept", "*/*"}, {"content-type", "application/json"}, {"content-length", "3"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	fr := http2.NewFramer(&out, bufio.NewReader(c))
	fr.SetReuseFrames()
	out.WriteString(http2.ClientPreface)
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := fr.WriteWindowUpdate(0, 1<<30); err != nil {
		t.Fatal(err)
	}
	stream := uint32(1)
	return func() error {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head.Bytes(), EndHeaders: true}) // to memory
		_ = fr.WriteData(stream, true, []byte(`"x"`))
		if _, err := c.Write(out.Bytes()); err != nil {
			return err
		}
		out.Reset()
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return err
			}
			switch h := f.Header(); {
			case h.Type == http2.FrameSettings && !h.Flags.Has(http2.FlagSettingsAck):
				_ = fr.WriteSettingsAck() // goes out with the next call
			case h.StreamID == stream && h.Flags.Has(http2.FlagDataEndStream):
				stream += 2
				return nil
			}
		}
	}
}

// BenchmarkHandler is the ingress alone, without net/http's connection handling.
func BenchmarkHandler(b *testing.B) {
	i := newIngress(b, instant{success(`"hi"`)}, nil)
	h := i.Handler()
	body := strings.NewReader("")
	r := httptest.NewRequest("POST", "/Obj/some-key/add", nil)
	r.Header = http.Header{"User-Agent": {"bench"}, "Accept": {"*/*"}, "Content-Type": {"application/json"}, "Content-Length": {"3"}}
	r.ContentLength, r.Body = 3, io.NopCloser(body)
	w := &sink{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		body.Reset(`"x"`)
		clear(w.h)
		h.ServeHTTP(w, r)
		if w.status != 200 {
			b.Fatal(w.status)
		}
	}
}

type instant struct{ reply *recordpb.Reply }

func (p instant) Do(context.Context, cluster.PartitionKey, *recordpb.Request) (*recordpb.Reply, error) {
	return p.reply, nil
}

type sink struct {
	h      http.Header
	status int
}

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) WriteHeader(c int)           { s.status = c }
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }
