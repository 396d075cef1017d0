package ingress

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"perdure/control/cluster"
	"perdure/nodes/record/recordpb"
)

// BenchmarkCall is a call over one kept-alive loopback connection: server, ingress and a minimal client, with a partition that
// answers at once.
func BenchmarkCall(b *testing.B) {
	reply := success(`"hi"`)
	addr := serve(b, newIngress(b, instant{reply}, nil))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	req := []byte("POST /Obj/some-key/add HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: bench\r\nAccept: */*\r\n" +
		"Content-Type: application/json\r\nContent-Length: 3\r\n\r\n\"x\"")
	r := bufio.NewReader(c)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(req); err != nil {
			b.Fatal(err)
		}
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := r.Discard(4); err != nil {
			b.Fatal(err)
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
