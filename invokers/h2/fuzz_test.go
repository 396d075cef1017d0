package h2

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"perdure/invokers/transport"
)

// FuzzPeer has a peer answer two open streams with arbitrary bytes and hang up. Whatever they are, nothing may panic,
// both exchanges must end, and all goroutines with them.
func FuzzPeer(f *testing.F) {
	for _, seed := range fuzzSeeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		var wg sync.WaitGroup
		cfg := DefaultConfig()
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			wg.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
			wg.Go(func() {
				defer theirs.Close()
				settings := appendFrameHeader(nil, 0, http2.FrameSettings, 0, 0)
				_, _ = theirs.Write(append(settings, answer...)) // the client may hang up earlier
			})
			return ours, nil
		}
		c, err := New(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			st, err := c.Open(context.Background(), parse(t, "http://h", false), transport.Request{Method: "POST", Path: "/", Header: benchHeader})
			if err != nil {
				continue // the connection was lost already
			}
			wg.Go(func() {
				defer st.Cancel()
				_ = st.Write([]byte("start")) // the reader learns it too
				if resp, err := st.Response(); err == nil && resp.Status < 200 {
					t.Errorf("status %d", resp.Status)
				}
				_, err := io.Copy(io.Discard, st)
				if err != nil && transport.KindOf(err) == 0 {
					t.Errorf("untyped error %v", err)
				}
				if st.Buffered() != -1 {
					t.Errorf("buffered is %d at the end", st.Buffered())
				}
			})
		}
		wg.Wait()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		checkBalance(t, c)
	})
}

func fuzzSeeds() [][]byte {
	var out bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	fr.AllowIllegalWrites = true
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	_ = enc.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	_ = enc.WriteField(hpack.HeaderField{Name: "content-length", Value: "3"})
	header := http2.HeadersFrameParam{StreamID: 1, BlockFragment: bytes.Clone(block.Bytes()), EndHeaders: true}
	take := func() []byte {
		defer out.Reset()
		return bytes.Clone(out.Bytes())
	}
	var seeds [][]byte
	_ = fr.WriteHeaders(header)
	_ = fr.WriteData(1, true, []byte("abc"))
	_ = fr.WritePing(false, [8]byte{1})
	_ = fr.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
	seeds = append(seeds, take())
	header.EndHeaders = false
	_ = fr.WriteHeaders(header)
	_ = fr.WriteContinuation(1, true, nil)
	_ = fr.WriteDataPadded(1, false, []byte("ab"), make([]byte, 5))
	_ = fr.WriteWindowUpdate(0, 10)
	_ = fr.WriteWindowUpdate(1, 10)
	_ = fr.WriteRSTStream(3, http2.ErrCodeRefusedStream)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
	seeds = append(seeds, take(), []byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	return seeds
}
