package h2

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"perdure/invokers/transport"
)

// The benchmarks run exchanges of the usual size, about 300 bytes up and 100 down, against a server that does as little
// as HTTP/2 allows, in the same process. "cpu-µs/op" is the CPU time of the process: both ends.

var benchHeader = []transport.Field{
	{Name: "content-type", Value: "application/vnd.restate.invocation.v6"},
	{Name: "accept", Value: "application/vnd.restate.invocation.v6"},
	{Name: "x-restate-invocation-id", Value: "inv_1k78Krj3GqrK6odGaRe866kHZilkVf1H4l", NoIndex: true},
	{Name: "x-restate-cluster-name", Value: "localcluster"},
}

var (
	benchUp   = bytes.Repeat([]byte("u"), 300)
	benchDown = bytes.Repeat([]byte("d"), 100)
)

// leanServer answers every stream with 200 and benchDown once the request has ended. Answers go out in one write per
// batch of frames read.
func leanServer(tb testing.TB) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	conns := make(chan net.Conn, 1000)
	wg.Go(func() {
		defer close(conns)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			conns <- nc
			wg.Go(func() { leanServe(nc) })
		}
	})
	tb.Cleanup(func() {
		_ = ln.Close()
		for nc := range conns {
			_ = nc.Close()
		}
		wg.Wait()
	})
	return ln.Addr().String()
}

func leanServe(nc net.Conn) {
	defer nc.Close()
	br := bufio.NewReaderSize(nc, 64<<10)
	var out bytes.Buffer
	fr := http2.NewFramer(&out, br)
	fr.SetReuseFrames()
	if _, err := io.CopyN(io.Discard, br, int64(len(http2.ClientPreface))); err != nil {
		return
	}
	var hb bytes.Buffer
	enc := hpack.NewEncoder(&hb)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 24})
	_ = fr.WriteWindowUpdate(0, 1<<30)
	var got int
	for {
		if br.Buffered() < frameHeaderLen && out.Len() > 0 {
			if _, err := nc.Write(out.Bytes()); err != nil {
				return
			}
			out.Reset()
		}
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			_ = fr.WritePing(true, f.Data)
		case *http2.DataFrame:
			if got += int(f.Length); got > 1<<20 {
				_ = fr.WriteWindowUpdate(0, uint32(got))
				got = 0
			}
			if f.StreamEnded() {
				hb.Reset()
				_ = enc.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
				_ = enc.WriteField(hpack.HeaderField{Name: "content-type", Value: "application/vnd.restate.invocation.v6"})
				_ = enc.WriteField(hpack.HeaderField{Name: "x-restate-server", Value: "restate-sdk-go/v1.2.0"})
				_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: f.StreamID, BlockFragment: hb.Bytes(), EndHeaders: true})
				_ = fr.WriteData(f.StreamID, true, benchDown)
			}
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmark(b *testing.B, parallel int, exchange func() error) {
	for range parallel {
		if err := exchange(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	start := cpuTime()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := exchange(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpuTime()-start).Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
}

func BenchmarkExchange(b *testing.B) {
	for _, parallel := range []int{1, 8, 64, 128} {
		b.Run("h2/"+itoa(parallel), func(b *testing.B) {
			addr := leanServer(b)
			c, err := New(DefaultConfig(), nil)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = c.Close() })
			ep, err := transport.ParseURL("http://"+addr, false)
			if err != nil {
				b.Fatal(err)
			}
			benchmark(b, parallel, func() error { return exchange(c, ep, benchUp) })
		})
		b.Run("net-http/"+itoa(parallel), func(b *testing.B) {
			addr := leanServer(b)
			protocols := new(http.Protocols)
			protocols.SetUnencryptedHTTP2(true)
			tr := &http.Transport{Protocols: protocols}
			b.Cleanup(tr.CloseIdleConnections)
			benchmark(b, parallel, func() error { return exchangeNetHTTP(tr, "http://"+addr+"/invoke/Greeter/greet") })
		})
	}
}

// BenchmarkUpload sends bodies of 1 MiB.
func BenchmarkUpload(b *testing.B) {
	addr := leanServer(b)
	c, err := New(DefaultConfig(), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	ep, err := transport.ParseURL("http://"+addr, false)
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 1<<20)
	b.SetBytes(int64(len(body)))
	benchmark(b, 2, func() error { return exchange(c, ep, body) })
}

func itoa(n int) string {
	return strings.TrimLeft(string([]byte{byte('0' + n/100%10), byte('0' + n/10%10), byte('0' + n%10)}), "0")
}

func exchange(c transport.Transport, ep transport.Endpoint, body []byte) error {
	s, err := c.Open(context.Background(), ep, transport.Request{Method: "POST", Path: "/invoke/Greeter/greet", Header: benchHeader})
	if err != nil {
		return err
	}
	defer s.Cancel()
	if err := s.Write(body); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	if _, err := s.Response(); err != nil {
		return err
	}
	var buf [512]byte
	for {
		if _, err := s.Read(buf[:]); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

func exchangeNetHTTP(rt http.RoundTripper, url string) error {
	req, err := http.NewRequest("POST", url, io.NopCloser(bytes.NewReader(benchUp)))
	if err != nil {
		return err
	}
	for _, f := range benchHeader {
		req.Header.Set(f.Name, f.Value)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return err
}
