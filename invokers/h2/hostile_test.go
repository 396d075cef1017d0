package h2

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"

	"perdure/invokers/transport"
)

// Each case has the peer break a rule, or spend our time, on an open stream. The stream, or the whole connection, must
// end with the right word to the peer, and the reader must learn why.
func TestHostilePeer(t *testing.T) {
	status := []string{":status", "200"}
	tests := []struct {
		name   string
		attack func(p *peer)
		kind   transport.Kind
		text   string
		code   http2.ErrCode
		stream bool // only the stream ends
	}{
		{"frame too large", func(p *peer) {
			p.respond(1, false, status...)
			_, _ = p.nc.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1}) // the client hangs up in the midst
		}, transport.Protocol, "longer than allowed", http2.ErrCodeFrameSize, false},
		{"endless continuation", func(p *peer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.header(status...)})
			for range 1000 {
				if p.fr.WriteContinuation(1, false, p.header("x", "y")) != nil {
					return
				}
			}
		}, transport.Protocol, "does not end", http2.ErrCodeEnhanceYourCalm, false},
		{"endless empty continuation", func(p *peer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.header(status...)})
			for range 1000 {
				if p.fr.WriteContinuation(1, false, nil) != nil {
					return
				}
			}
		}, transport.Protocol, "does not end", http2.ErrCodeEnhanceYourCalm, false},
		{"large continuation", func(p *peer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.header(status...)})
			for range 1000 {
				if p.fr.WriteContinuation(1, false, p.header("x", strings.Repeat("y", 10<<10))) != nil {
					return
				}
			}
		}, transport.Protocol, "does not end", http2.ErrCodeEnhanceYourCalm, false},
		{"interrupted header block", func(p *peer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.header(status...)})
			_ = p.fr.WriteData(1, false, []byte("x"))
		}, transport.Protocol, "bad frame", http2.ErrCodeProtocol, false},
		{"header too long", func(p *peer) {
			block := p.header(append(status, "a", strings.Repeat("y", 15<<10))...)
			for range 10 { // from the table, one byte for each repetition
				block = append(block, 0x80|62)
			}
			p.do(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true}))
		}, transport.Protocol, "decode header", http2.ErrCodeCompression, false},
		{"many fields", func(p *peer) {
			block := p.header(append(status, "a", strings.Repeat("y", 2000))...)
			for range 1000 { // from the table: one byte each here, 2 kB each there
				block = append(block, 0x80|62)
			}
			p.do(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true}))
		}, transport.Protocol, "longer than 65536", http2.ErrCodeProtocol, true},
		{"garbage header block", func(p *peer) {
			p.do(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true}))
		}, transport.Protocol, "decode header", http2.ErrCodeCompression, false},
		{"truncated header block", func(p *peer) {
			block := p.header(status...)
			block = append(block, p.header("name", "value")...)
			p.do(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:len(block)-2], EndHeaders: true}))
		}, transport.Protocol, "decode header", http2.ErrCodeCompression, false},
		{"no status", func(p *peer) { p.respond(1, false, "a", "b") }, transport.Protocol, "no status", http2.ErrCodeProtocol, true},
		{"bad status", func(p *peer) { p.respond(1, false, ":status", "20x") }, transport.Protocol, "no number", http2.ErrCodeProtocol, true},
		{"long status", func(p *peer) { p.respond(1, false, ":status", "2000") }, transport.Protocol, "no number", http2.ErrCodeProtocol, true},
		{"two statuses", func(p *peer) { p.respond(1, false, ":status", "200", ":status", "200") }, transport.Protocol, "malformed", http2.ErrCodeProtocol, true},
		{"late status", func(p *peer) { p.respond(1, false, "a", "b", ":status", "200") }, transport.Protocol, "malformed", http2.ErrCodeProtocol, true},
		{"upper case name", func(p *peer) { p.respond(1, false, ":status", "200", "A", "b") }, transport.Protocol, "malformed", http2.ErrCodeProtocol, true},
		{"line break in a value", func(p *peer) { p.respond(1, false, ":status", "200", "a", "b\r\nc") }, transport.Protocol, "malformed", http2.ErrCodeProtocol, true},
		{"last informational", func(p *peer) { p.respond(1, true, ":status", "103") }, transport.Protocol, "informational", http2.ErrCodeProtocol, true},
		{"second header", func(p *peer) { p.respond(1, false, status...); p.respond(1, true, status...) }, transport.Protocol, "second header", http2.ErrCodeProtocol, true},
		{"trailers without end", func(p *peer) { p.respond(1, false, status...); p.respond(1, false, "a", "b") }, transport.Protocol, "second header", http2.ErrCodeProtocol, true},
		{"body shorter than its length", func(p *peer) {
			p.respond(1, false, ":status", "200", "content-length", "5")
			p.do(p.fr.WriteData(1, true, []byte("abcd")))
		}, transport.Protocol, "content-length says 5", http2.ErrCodeProtocol, true},
		{"content-length is no number", func(p *peer) {
			p.respond(1, false, ":status", "200", "content-length", "+5")
		}, transport.Protocol, "no number", http2.ErrCodeProtocol, true},
		{"body before header", func(p *peer) { p.do(p.fr.WriteData(1, false, []byte("x"))) }, transport.Protocol, "before its header", http2.ErrCodeProtocol, true},
		{"body after the end", func(p *peer) {
			p.respond(1, true, status...)
			p.do(p.fr.WriteData(1, false, []byte("x")))
		}, 0, "", http2.ErrCodeStreamClosed, false},
		{"stream that was never opened", func(p *peer) { p.do(p.fr.WriteData(3, false, []byte("x"))) }, transport.Protocol, "never opened", http2.ErrCodeProtocol, false},
		{"header of a stream of the peer", func(p *peer) { p.respond(2, false, status...) }, transport.Protocol, "never opened", http2.ErrCodeProtocol, false},
		{"push", func(p *peer) {
			p.do(p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: p.header(":path", "/"), EndHeaders: true}))
		}, transport.Protocol, "pushed", http2.ErrCodeProtocol, false},
		{"window beyond the maximum", func(p *peer) { p.do(p.fr.WriteWindowUpdate(0, maxWindow)) }, transport.Protocol, "beyond its maximum", http2.ErrCodeFlowControl, false},
		{"stream's window beyond the maximum", func(p *peer) { p.do(p.fr.WriteWindowUpdate(1, maxWindow)) }, transport.Protocol, "beyond its maximum", http2.ErrCodeFlowControl, false},
		{"empty window update", func(p *peer) { p.do(p.fr.WriteWindowUpdate(1, 0)) }, transport.Protocol, "bad frame", http2.ErrCodeProtocol, true},
		{"initial window beyond the maximum", func(p *peer) {
			p.do(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
		}, transport.Protocol, "bad frame", http2.ErrCodeFlowControl, false},
		{"frame size below the minimum", func(p *peer) {
			p.do(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}))
		}, transport.Protocol, "out of range", http2.ErrCodeProtocol, false},
		{"settings of odd length", func(p *peer) { p.do(p.fr.WriteRawFrame(http2.FrameSettings, 0, 0, []byte{1})) }, transport.Protocol, "bad frame", http2.ErrCodeFrameSize, false},
		{"flood of empty data", func(p *peer) {
			p.respond(1, false, status...)
			p.flood(func() error { return p.fr.WriteData(1, false, nil) })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of padding", func(p *peer) {
			p.respond(1, false, status...)
			p.flood(func() error { return p.fr.WriteDataPadded(1, false, nil, make([]byte, 200)) })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of pings", func(p *peer) {
			p.flood(func() error { return p.fr.WritePing(false, [8]byte{}) })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of ping answers", func(p *peer) {
			p.flood(func() error { return p.fr.WritePing(true, [8]byte{}) })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of settings", func(p *peer) {
			p.flood(func() error { return p.fr.WriteSettings() })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of priorities", func(p *peer) {
			p.flood(func() error { return p.fr.WritePriority(1, http2.PriorityParam{Weight: 1}) })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of unknown frames", func(p *peer) {
			p.flood(func() error { return p.fr.WriteRawFrame(0xbe, 0, 1, []byte("x")) })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of window updates", func(p *peer) {
			p.flood(func() error { return p.fr.WriteWindowUpdate(1, 1) })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of informational responses", func(p *peer) {
			p.flood(func() error {
				return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.header(":status", "100"), EndHeaders: true})
			})
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of late resets", func(p *peer) {
			p.do(p.fr.WriteRSTStream(1, http2.ErrCodeInternal))
			p.flood(func() error { return p.fr.WriteRSTStream(1, http2.ErrCodeInternal) })
		}, transport.Reset, "INTERNAL_ERROR", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of late headers", func(p *peer) {
			p.do(p.fr.WriteRSTStream(1, http2.ErrCodeInternal))
			p.flood(func() error {
				return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.header(":status", "200"), EndHeaders: true})
			})
		}, transport.Reset, "INTERNAL_ERROR", http2.ErrCodeEnhanceYourCalm, false},
		{"flood of goaways", func(p *peer) {
			p.flood(func() error { return p.fr.WriteGoAway(1, http2.ErrCodeNo, nil) })
		}, transport.Protocol, "floods", http2.ErrCodeEnhanceYourCalm, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				p, st := r.opened()
				attacked := make(chan struct{})
				go func() {
					defer close(attacked)
					tt.attack(p)
				}()
				if err := readError(st); tt.kind != 0 {
					wantKind(t, err, tt.kind, tt.text)
				} else if err != nil {
					t.Errorf("read: %v", err)
				}
				if !tt.stream {
					p.wantGoAway(tt.code)
					return
				}
				p.wantReset(1, tt.code)
				<-attacked
				r.survives(p)
			})
		})
	}
}

// flood sends the frame until the client hangs up.
func (p *peer) flood(write func() error) {
	for range 100_000 {
		if write() != nil {
			return
		}
	}
	p.t.Error("the client takes any number of these frames")
}

// survives checks that the connection still serves exchanges.
func (r *rig) survives(p *peer) {
	r.t.Helper()
	st := r.open("more")
	h := p.want(http2.FrameHeaders)
	p.answer(h.id, "fine")
	wantBody(r.t, st, "fine")
	st.Cancel()
}

// The peer floods and does not read our answers: they must not pile up.
func TestAnswersToControlFramesAreBounded(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		resume := p.stop()
		p.respond(1, false, ":status", "200")
		go func() {
			defer resume()
			for p.fr.WriteData(1, false, []byte("x")) == nil { // progress, so that it is no flood
				for range 4 {
					_ = p.fr.WritePing(false, [8]byte{})
				}
			}
		}()
		wantKind(t, readError(st), transport.Protocol, "does not read")
	})
}

// A peer that ignores the window of a stream loses the stream.
func TestStreamWindowIsEnforced(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		p.respond(1, false, ":status", "200")
		for range (2 << 20) / minMaxFrame {
			p.do(p.fr.WriteData(1, false, make([]byte, minMaxFrame)))
		}
		p.do(p.fr.WriteData(1, false, []byte("x")))
		p.wantReset(1, http2.ErrCodeFlowControl)
		n, err := io.Copy(io.Discard, st)
		wantKind(t, err, transport.Protocol, "more than its window")
		if n != 2<<20 {
			t.Errorf("got %d bytes before the failure", n)
		}
		r.survives(p)
	})
}

// A peer that ignores the window of the connection loses the connection.
func TestConnectionWindowIsEnforced(t *testing.T) {
	bubble(t, func(c *Config) { c.ConnBuffer = c.StreamWindow }, func(t *testing.T, r *rig) {
		p, st := r.opened()
		streams := []transport.Stream{st}
		for range 3 {
			streams = append(streams, r.open("start"))
		}
		for i := range streams { // nobody reads 8 MiB; the window is 5 MiB and is given back for the first 2
			p.respond(uint32(2*i+1), false, ":status", "200")
			for range (2 << 20) / minMaxFrame {
				_ = p.fr.WriteData(uint32(2*i+1), false, make([]byte, minMaxFrame)) // fails when the client has hung up
			}
		}
		p.wantGoAway(http2.ErrCodeFlowControl)
		wantKind(t, readError(st), transport.Protocol, "window of the connection")
	})
}

// The window of the connection comes back when the unread bytes that held it up are read, or dropped.
func TestConnectionWindowComesBack(t *testing.T) {
	for _, how := range []string{"read", "cancel"} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(c *Config) { c.ConnBuffer = c.StreamWindow }, func(t *testing.T, r *rig) {
				p, st := r.opened()
				other := r.open("start")
				for _, id := range []uint32{1, 3} {
					p.respond(id, false, ":status", "200")
					for range (2 << 20) / minMaxFrame {
						p.do(p.fr.WriteData(id, false, make([]byte, minMaxFrame)))
					}
				}
				synctest.Wait()
				var given uint32
				for drained := false; !drained; {
					select {
					case s := <-p.frames:
						if s.typ == http2.FrameWindowUpdate && s.id == 0 {
							given += s.n
						}
					default:
						drained = true
					}
				}
				if limit := uint32(5<<20 + 2<<20); given > limit-initialWindow {
					t.Fatalf("%d bytes of window given back with 4 MiB unread", given)
				}
				st.Cancel()
				if how == "read" {
					if n, err := io.CopyN(io.Discard, other, 2<<20); err != nil {
						t.Fatalf("read %d, %v", n, err)
					}
				} else {
					other.Cancel()
				}
				for s := p.want(http2.FrameWindowUpdate); s.id != 0; s = p.want(http2.FrameWindowUpdate) {
				}
				r.survives(p)
			})
		})
	}
}

func TestGoodPeerIsNoFlood(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		p.respond(1, false, ":status", "200")
		go func() {
			for range 5000 { // each byte with a ping and an update of the window
				p.do(p.fr.WriteWindowUpdate(0, 1))
				p.do(p.fr.WritePing(false, [8]byte{}))
				p.do(p.fr.WriteData(1, false, []byte("x")))
			}
			p.do(p.fr.WriteData(1, true, nil))
		}()
		wantBody(t, st, strings.Repeat("x", 5000))
	})
}
