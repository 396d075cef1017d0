package h2

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"perdure/invokers/transport"
)

// peer is the other end of a connection, scripted frame by frame. What the client sends is collected by a goroutine,
// so that the script never has to read to keep the client going.
type peer struct {
	t      *testing.T
	nc     net.Conn
	fr     *http2.Framer
	hbuf   bytes.Buffer
	henc   *hpack.Encoder
	frames chan sent     // everything the client sends; closed when its connection ends
	writes chan int      // sizes of the client's writes
	gate   chan struct{} // holds a token while collect may read
}

// sent is a frame of the client.
type sent struct {
	typ    http2.FrameType
	flags  http2.Flags
	id     uint32
	fields map[string]string // of HEADERS
	data   string            // of DATA
	code   http2.ErrCode     // of RST_STREAM and GOAWAY
	n      uint32            // of WINDOW_UPDATE
	stamp  [8]byte           // of PING
}

func (s sent) end() bool { return s.flags.Has(http2.FlagDataEndStream) }

// rig is a client whose connections end at peers. Everything runs in a synctest bubble, so waiting costs no time and a
// deadlock is a failure.
type rig struct {
	t      *testing.T
	client *Client
	ep     transport.Endpoint
	peers  chan *peer // one for each dial
}

// bubble runs test with a rig.
func bubble(t *testing.T, change func(*Config), test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, peers: make(chan *peer, 1000)}
		cfg := DefaultConfig()
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) { return r.dial(), nil }
		if change != nil {
			change(&cfg)
		}
		var err error
		if r.client, err = New(cfg, nil); err != nil {
			t.Fatal(err)
		}
		r.ep = parse(t, "http://service:9080", false)
		defer func() {
			if err := r.client.Close(); err != nil {
				t.Error(err)
			}
		}()
		test(t, r)
	})
}

func (r *rig) dial() net.Conn {
	ours, theirs := net.Pipe()
	p := &peer{t: r.t, nc: theirs, frames: make(chan sent, 100_000), writes: make(chan int, 100_000), gate: make(chan struct{}, 1)}
	p.gate <- struct{}{}
	p.fr = http2.NewFramer(theirs, theirs)
	p.fr.AllowIllegalWrites = true
	p.fr.SetMaxReadFrameSize(1<<24 - 1)
	p.henc = hpack.NewEncoder(&p.hbuf)
	r.peers <- p
	return countWrites{ours, p}
}

type countWrites struct {
	net.Conn
	p *peer
}

func (c countWrites) Write(b []byte) (int, error) {
	c.p.writes <- len(b)
	return c.Conn.Write(b)
}

// accept completes the handshake of the next connection with the given settings.
func (r *rig) accept(settings ...http2.Setting) *peer {
	r.t.Helper()
	p := <-r.peers
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(p.nc, preface); err != nil || string(preface) != http2.ClientPreface {
		r.t.Fatalf("preface %q, %v", preface, err)
	}
	go p.collect()
	p.do(p.fr.WriteSettings(settings...))
	return p
}

// collect reads what the client sends until the connection ends.
func (p *peer) collect() {
	defer close(p.frames)
	var fields map[string]string
	dec := hpack.NewDecoder(tableSize, func(f hpack.HeaderField) { fields[f.Name] = f.Value })
	for {
		<-p.gate
		p.gate <- struct{}{}
		f, err := p.fr.ReadFrame()
		if err != nil {
			return
		}
		s := sent{typ: f.Header().Type, flags: f.Header().Flags, id: f.Header().StreamID}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			fields = make(map[string]string)
			_, err = dec.Write(f.HeaderBlockFragment())
			s.fields = fields
		case *http2.ContinuationFrame:
			_, err = dec.Write(f.HeaderBlockFragment())
			s.fields = fields
		case *http2.DataFrame:
			s.data = string(f.Data())
		case *http2.RSTStreamFrame:
			s.code = f.ErrCode
		case *http2.GoAwayFrame:
			s.code = f.ErrCode
		case *http2.WindowUpdateFrame:
			s.n = f.Increment
		case *http2.PingFrame:
			s.stamp = f.Data
		}
		if err == nil && fields != nil && s.flags.Has(http2.FlagHeadersEndHeaders) && s.typ != http2.FrameData {
			err = dec.Close()
		}
		if err != nil {
			p.t.Errorf("client's header block: %v", err)
		}
		p.frames <- s
	}
}

// stop has the peer read no further, after one frame more, until resume is called. Everything that was sent before
// has been read then, so the next frame comes from what the client writes next.
func (p *peer) stop() (resume func()) {
	synctest.Wait()
	<-p.gate
	return func() { p.gate <- struct{}{} }
}

// do fails the test when the script could not send.
func (p *peer) do(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("script: %v", err)
	}
}

// next returns the client's next frame of one of the types, skipping others; ok is false when the connection ended.
func (p *peer) next(types ...http2.FrameType) (s sent, ok bool) {
	for s := range p.frames {
		for _, typ := range types {
			if s.typ == typ {
				return s, true
			}
		}
	}
	return sent{}, false
}

func (p *peer) want(typ http2.FrameType) sent {
	p.t.Helper()
	s, ok := p.next(typ)
	if !ok {
		p.t.Fatalf("connection ended before %v came", typ)
	}
	return s
}

// wantGoAway expects that the client gives the connection up with the code.
func (p *peer) wantGoAway(code http2.ErrCode) {
	p.t.Helper()
	if s := p.want(http2.FrameGoAway); s.code != code {
		p.t.Errorf("client said %v, want %v", s.code, code)
	}
	if s, ok := p.next(http2.FrameData, http2.FrameHeaders); ok {
		p.t.Errorf("client sent %+v after GOAWAY", s)
	}
}

func (p *peer) wantReset(id uint32, code http2.ErrCode) {
	p.t.Helper()
	if s := p.want(http2.FrameRSTStream); s.id != id || s.code != code {
		p.t.Errorf("client reset stream %d with %v, want %d with %v", s.id, s.code, id, code)
	}
}

// header encodes a header block from name, value, name, value...
func (p *peer) header(fields ...string) []byte {
	p.hbuf.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.do(p.henc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	return bytes.Clone(p.hbuf.Bytes())
}

func (p *peer) respond(id uint32, end bool, fields ...string) {
	p.t.Helper()
	p.do(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.header(fields...), EndHeaders: true, EndStream: end}))
}

func (p *peer) answer(id uint32, body string) {
	p.t.Helper()
	p.respond(id, false, ":status", "200")
	p.do(p.fr.WriteData(id, true, []byte(body)))
}

// open opens an exchange and sends the beginning of a request.
func (r *rig) open(body string) transport.Stream {
	r.t.Helper()
	st, err := r.tryOpen()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := st.Write([]byte(body)); err != nil {
		r.t.Fatal(err)
	}
	return st
}

func (r *rig) tryOpen() (transport.Stream, error) {
	return r.client.Open(r.t.Context(), r.ep, transport.Request{Method: "POST", Path: "/invoke/S/h", Header: benchHeader})
}

// opened is open together with the handshake of the connection that it makes.
func (r *rig) opened(settings ...http2.Setting) (*peer, transport.Stream) {
	r.t.Helper()
	var p *peer
	done := make(chan struct{})
	go func() {
		defer close(done)
		p = r.accept(settings...)
	}()
	st := r.open("start")
	<-done
	if h := p.want(http2.FrameHeaders); h.fields[":path"] != "/invoke/S/h" || h.fields[":authority"] != "service:9080" ||
		h.fields[":scheme"] != "http" || h.fields[":method"] != "POST" || h.fields["accept"] != benchHeader[1].Value {
		r.t.Fatalf("request header is %v", h.fields)
	}
	return p, st
}

func wantKind(t *testing.T, err error, want transport.Kind, text string) {
	t.Helper()
	if transport.KindOf(err) != want || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %q is of kind %v, want %v with %q", fmt.Sprint(err), transport.KindOf(err), want, text)
	}
}

func wantBody(t *testing.T, st transport.Stream, want string) {
	t.Helper()
	got, err := io.ReadAll(st)
	if err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func readError(st transport.Stream) error {
	_, err := io.Copy(io.Discard, st)
	return err
}
