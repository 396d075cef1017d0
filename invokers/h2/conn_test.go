package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"perdure/invokers/transport"
)

// discover runs a whole exchange without a body.
func discover(c *Client, ep transport.Endpoint) error {
	st, err := c.Open(context.Background(), ep, transport.Request{Method: "GET", Path: "/discover"})
	if err != nil {
		return err
	}
	defer st.Cancel()
	if err := st.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, st)
	return err
}

func TestPeerThatSpeaksOnlyHTTP1(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	err := discover(newClient(t, nil), parse(t, srv.URL, false))
	wantKind(t, err, transport.HTTP1Only, "HTTP/1.1")
}

func TestGreeting(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		kind         transport.Kind
		text         string
	}{
		{"status line in pieces", "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", transport.HTTP1Only, `"HTTP/1.1 400 Bad Request"`},
		{"HTTP 1.0", "HTTP/1.0 400 x\r\n\r\n", transport.HTTP1Only, "HTTP/1.0 400"},
		{"another protocol", "SSH-2.0-OpenSSH_9.6\r\n", transport.Connect, "no HTTP/2"},
		{"nothing", "", transport.Connect, ""},
		{"half a frame header", "\x00\x00\x00\x04", transport.Connect, "closed the connection"},
		{"acknowledgement first", "\x00\x00\x00\x04\x01\x00\x00\x00\x00", transport.Connect, "SETTINGS"},
		{"settings for a stream", "\x00\x00\x00\x04\x00\x00\x00\x00\x01", transport.Connect, "bad frame"},
		{"settings too large", "\xff\xff\xff\x04\x00\x00\x00\x00\x00", transport.Connect, "longer than allowed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				go func() {
					p := <-r.peers
					go func() { _, _ = io.Copy(io.Discard, p.nc) }()
					for b := range strings.SplitSeq(tt.answer, "") {
						_, _ = p.nc.Write([]byte(b)) // the client may have heard enough
					}
					_ = p.nc.Close()
				}()
				_, err := r.tryOpen()
				wantKind(t, err, tt.kind, tt.text)
				var failure *transport.Error
				if !errors.As(err, &failure) || !failure.NotSeen() {
					t.Errorf("%v does not say that nothing was sent", err)
				}
			})
		})
	}
}

func TestConnectTimeout(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		begin := time.Now()
		_, err := r.tryOpen()
		wantKind(t, err, transport.Connect, "not connected within 10s")
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

func TestConnectRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	url := "http://" + conn.LocalAddr().String() // nobody listens there, nor can while it is in use
	for _, http11 := range []bool{false, true} {
		err := discover(newClient(t, nil), parse(t, url, http11))
		wantKind(t, err, transport.Connect, "refused")
	}
}

func TestWrongCertificate(t *testing.T) {
	url, _ := serveTLS(t, http.NotFoundHandler(), true)
	for _, http11 := range []bool{false, true} {
		err := discover(newClient(t, nil), parse(t, url, http11))
		wantKind(t, err, transport.Connect, "certificate")
	}
}

func TestDialControl(t *testing.T) {
	url := serveClear(t, http.NotFoundHandler())
	denied := errors.New("not this one")
	var asked string
	c := newClient(t, func(c *Config) {
		c.DialControl = func(_, address string) error {
			asked = address
			return denied
		}
	})
	for _, http11 := range []bool{false, true} {
		err := discover(c, parse(t, url, http11))
		wantKind(t, err, transport.Connect, "not this one")
		if !errors.Is(err, denied) || "http://"+asked != url {
			t.Errorf("asked for %q, got %v", asked, err)
		}
	}
}

func TestDenyMetadata(t *testing.T) {
	for _, a := range []string{
		"169.254.169.254:80", "169.254.170.2:80", "[::ffff:169.254.169.254]:80", "[fe80::1%lo]:80", "[fe80::1]:9080",
		"[fd00:ec2::254]:80", "100.100.100.200:80", "224.0.0.1:80", "[ff02::1]:80", "[64:ff9b::169.254.169.254]:80",
		"[64:ff9b:1::169.254.169.254]:80", "[::169.254.169.254]:80", "[2002:a9fe:a9fe::1]:80", "[fd00:ec2::23]:80", "nonsense",
	} {
		if DenyMetadata("tcp", a) == nil {
			t.Errorf("%s is allowed", a)
		}
	}
	for _, a := range []string{"127.0.0.1:9080", "10.0.0.1:80", "[::1]:9080", "[fd00:ec2::1]:80", "192.168.1.1:443", "8.8.8.8:443", "100.64.0.1:80", "169.253.0.1:1", "[64:ff9b::8.8.8.8]:80"} {
		if err := DenyMetadata("tcp", a); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}

// The header block, the body and the end of a small request leave in one write.
func TestRequestLeavesInOneWrite(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		p.answer(1, "")
		st.Cancel()
		resume := p.stop()
		_ = p.fr.WriteWindowUpdate(1, 1) // nothing: lets the writer come to rest
		synctest.Wait()
		for len(p.writes) > 0 {
			<-p.writes
		}
		st, err := r.tryOpen()
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(p.writes) > 0 {
			t.Error("Open wrote to the connection")
		}
		if err := errors.Join(st.Write([]byte("body")), st.CloseWrite()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		resume()
		h := p.want(http2.FrameHeaders)
		d := p.want(http2.FrameData)
		if h.end() || d.data != "body" {
			t.Errorf("got %+v, %+v", h, d)
		}
		size := <-p.writes
		if min := 2*frameHeaderLen + 4; size < min {
			t.Errorf("first write has %d bytes, not header and body", size)
		}
		if !d.end() { // only when the writer was faster than CloseWrite
			if d := p.want(http2.FrameData); !d.end() || d.data != "" {
				t.Errorf("got %+v", d)
			}
		}
		st.Cancel()
	})
}

// While the socket is busy, the frames of many exchanges pile up and leave together, END_STREAM on the last DATA.
func TestWritesCoalesce(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, _ := r.opened()
		resume := p.stop()
		r.open("blocks the socket")
		synctest.Wait()
		before := len(p.writes)
		var streams []transport.Stream
		for range 50 {
			st := r.open("x")
			if err := errors.Join(st.Write([]byte("y")), st.CloseWrite()); err != nil {
				t.Fatal(err)
			}
			streams = append(streams, st)
		}
		resume()
		for i := range streams {
			for p.want(http2.FrameHeaders).id != uint32(5+2*i) {
			}
			p.want(http2.FrameData)
			if d := p.want(http2.FrameData); !d.end() || d.data != "y" {
				t.Fatalf("got %+v", d)
			}
		}
		synctest.Wait()
		if n := len(p.writes) - before; n > 1 {
			t.Errorf("%d writes", n)
		}
	})
}

func TestSecondConnectionAboveTheLimit(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p1, st1 := r.opened(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		p2, st2 := r.opened(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		p1.answer(1, "one")
		p2.answer(1, "two")
		for st, want := range map[transport.Stream]string{st1: "one", st2: "two"} {
			wantBody(t, st, want)
			if err := st.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		r.open("again") // a stream that has ended frees its slot; both connections are free now
		if h := p1.want(http2.FrameHeaders); h.id != 3 {
			t.Errorf("got stream %d", h.id)
		}
		if len(r.peers) != 0 {
			t.Error("a third connection was made")
		}
	})
}

func TestOpenWaitsForAStream(t *testing.T) {
	bubble(t, func(c *Config) { c.MaxConnsPerEndpoint = 1 }, func(t *testing.T, r *rig) {
		p, st := r.opened(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		type result struct {
			who int
			st  transport.Stream
			err error
		}
		got := make(chan result, 3)
		for i := range 3 {
			go func() {
				st, err := r.tryOpen()
				got <- result{i, st, err}
			}()
			synctest.Wait() // one after the other
		}
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error, 1)
		go func() {
			_, err := r.client.Open(ctx, r.ep, transport.Request{Method: "GET", Path: "/discover"})
			gaveUp <- err
		}()
		synctest.Wait()
		cancel()
		wantKind(t, <-gaveUp, transport.Canceled, "canceled")
		st.Cancel()
		for want := range 2 { // in order of arrival
			res := <-got
			if res.who != want || res.err != nil {
				t.Fatalf("got %+v, want exchange %d", res, want)
			}
			res.st.Cancel()
		}
		res := <-got // its slot came with the cancel of the one before
		p.do(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2}))
		synctest.Wait()
		if st, err := r.tryOpen(); err != nil {
			t.Error(err)
		} else {
			st.Cancel()
		}
		res.st.Cancel()
	})
}

func TestPeerThatWantsNoStreamsNow(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		opened := make(chan error, 1)
		go func() {
			st, err := r.tryOpen()
			if err == nil {
				st.Cancel()
			}
			opened <- err
		}()
		p := r.accept(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
		time.Sleep(59 * time.Second) // of the bubble: no time passes
		if len(opened) > 0 || len(r.peers) > 0 {
			t.Fatalf("%d results, %d more connections", len(opened), len(r.peers))
		}
		p.do(p.fr.WritePing(true, [8]byte{}))
		p.do(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100}))
		if err := <-opened; err != nil {
			t.Error(err)
		}
	})
}

// An exchange does not wait for ever for a peer that wants none: it would keep its caller's slot for so long.
func TestOpenGivesUp(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		opened := make(chan error, 1)
		start := time.Now()
		go func() {
			_, err := r.tryOpen()
			opened <- err
		}()
		p := r.accept(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
		go func() { // a live peer: pings keep the connection
			for range 5 {
				time.Sleep(20 * time.Second)
				p.do(p.fr.WritePing(false, [8]byte{}))
			}
		}()
		err := <-opened
		wantKind(t, err, transport.Throttled, "no stream became free")
		var failure *transport.Error
		if !errors.As(err, &failure) || failure.RetryAfter <= 0 || !failure.NotSeen() {
			t.Errorf("%#v: want a pause, and the certainty that nothing ran", failure)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("gave up after %v", d)
		}
		time.Sleep(2 * time.Minute)
	})
}

// A peer that takes connections and never an exchange must not be dialled in a loop.
func TestConnectionThatServesNobodyFailsThoseWhoWait(t *testing.T) {
	for _, how := range []string{"closes", "goes away"} {
		bubble(t, nil, func(t *testing.T, r *rig) {
			opened := make(chan error, 1)
			go func() {
				_, err := r.tryOpen()
				opened <- err
			}()
			p := r.accept(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
			synctest.Wait()
			if how == "closes" {
				_ = p.nc.Close()
			} else {
				p.do(p.fr.WriteGoAway(0, http2.ErrCodeNo, nil))
			}
			wantKind(t, <-opened, transport.NotProcessed, "")
			if len(r.peers) > 0 {
				t.Error("dialled again")
			}
		})
	}
}

func TestBurstSharesOneDial(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		got := make(chan transport.Stream, 200)
		for range 200 {
			go func() {
				st, err := r.tryOpen()
				if err != nil {
					t.Error(err)
				}
				got <- st
			}()
		}
		synctest.Wait()
		if len(r.peers) != 2 { // 128 exchanges on one
			t.Errorf("%d connections for 200 exchanges", len(r.peers))
		}
		r.accept()
		r.accept()
		for range 200 {
			(<-got).Cancel()
		}
	})
}

func TestFailedDialFailsThoseWhoWait(t *testing.T) {
	broken := errors.New("no route")
	bubble(t, func(c *Config) {
		c.Dial = func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(time.Second)
			return nil, broken
		}
	}, func(t *testing.T, r *rig) {
		got := make(chan error, 300)
		for range 300 {
			go func() {
				_, err := r.tryOpen()
				got <- err
			}()
		}
		for range 300 {
			if err := <-got; !errors.Is(err, broken) {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := len(r.client.pools); n != 0 {
			t.Errorf("%d pools remain", n)
		}
	})
}

func TestGoAway(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st1 := r.opened()
		st2 := r.open("not processed")
		reserved, err := r.tryOpen()
		if err != nil {
			t.Fatal(err)
		}
		p.do(p.fr.WriteGoAway(1, http2.ErrCodeNo, []byte("bye")))
		wantKind(t, readError(st2), transport.NotProcessed, "bye")
		wantKind(t, st2.Write([]byte("x")), transport.NotProcessed, "bye")
		wantKind(t, reserved.Write([]byte("x")), transport.NotProcessed, "no new streams")

		p2, st3 := r.opened() // a new connection
		p2.answer(1, "second")
		wantBody(t, st3, "second")

		if err := st1.Write([]byte("more")); err != nil { // the old exchange goes on
			t.Fatal(err)
		}
		p.answer(1, "first")
		wantBody(t, st1, "first")
		if err := st1.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		p.wantGoAway(http2.ErrCodeNo) // and was the last one
	})
}

func TestGoAwayTwice(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		p.do(p.fr.WriteGoAway(maxStreamID, http2.ErrCodeNo, nil))
		synctest.Wait()
		if st.Buffered() != 0 {
			t.Fatal("the warning failed the exchange")
		}
		p.do(p.fr.WriteGoAway(0, http2.ErrCodeInternal, nil))
		wantKind(t, readError(st), transport.NotProcessed, "INTERNAL_ERROR")
		p.wantGoAway(http2.ErrCodeNo)
	})
}

func TestResetCodes(t *testing.T) {
	for code, kind := range map[http2.ErrCode]transport.Kind{
		http2.ErrCodeRefusedStream: transport.NotProcessed, http2.ErrCodeInternal: transport.Reset, http2.ErrCodeCancel: transport.Reset,
		http2.ErrCodeHTTP11Required: transport.HTTP1Only, http2.ErrCodeNo: transport.Reset, 0x1234: transport.Reset,
	} {
		bubble(t, nil, func(t *testing.T, r *rig) {
			p, st := r.opened()
			p.do(p.fr.WriteRSTStream(1, code))
			err := readError(st)
			wantKind(t, err, kind, "reset")
			if werr := st.Write([]byte("x")); werr != err {
				t.Errorf("write fails with %v, read with %v", werr, err)
			}
			if werr := st.CloseWrite(); werr != err {
				t.Errorf("CloseWrite fails with %v, read with %v", werr, err)
			}
			st.Cancel()
			r.survives(p)
		})
	}
}

// A service that has answered may tell that it does not want the rest of the request.
func TestResetAfterTheResponse(t *testing.T) {
	for _, code := range []http2.ErrCode{http2.ErrCodeNo, http2.ErrCodeCancel} {
		bubble(t, nil, func(t *testing.T, r *rig) {
			p, st := r.opened()
			p.answer(1, "answer")
			p.do(p.fr.WriteRSTStream(1, code))
			synctest.Wait()
			wantKind(t, st.Write([]byte("x")), transport.Reset, "without reading")
			wantBody(t, st, "answer")
			if err := st.CloseWrite(); err != nil {
				t.Error(err)
			}
			st.Cancel()
			r.survives(p)
		})
	}
}

func TestLostConnection(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st1 := r.opened()
		p.respond(1, false, ":status", "200")
		p.do(p.fr.WriteData(1, false, []byte("some")))
		resume := p.stop()
		st2 := r.open("the socket takes some of it")
		synctest.Wait()
		st3 := r.open("waits behind it")
		st4, err := r.tryOpen()
		if err != nil {
			t.Fatal(err)
		}
		_ = p.nc.Close()
		resume()
		wantKind(t, readError(st2), transport.Reset, "")
		wantKind(t, readError(st3), transport.NotProcessed, "")
		wantKind(t, st4.Write([]byte("x")), transport.NotProcessed, "")
		got, err := io.ReadAll(st1)
		wantKind(t, err, transport.Reset, "")
		if string(got) != "some" {
			t.Errorf("got %q before the failure", got)
		}
	})
}

func TestKeepAlive(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		begin := time.Now()
		for range 5 {
			ping := p.want(http2.FramePing)
			if d := time.Since(begin); d < 40*time.Second || d > 48*time.Second+time.Millisecond {
				t.Errorf("ping after %v", d)
			}
			time.Sleep(19 * time.Second) // of the bubble
			p.do(p.fr.WritePing(true, ping.stamp))
			begin = time.Now()
			time.Sleep(2 * time.Second)
			if st.Buffered() != 0 {
				t.Fatal("the exchange failed although the peer answered")
			}
		}
		p.want(http2.FramePing)
		begin = time.Now()
		wantKind(t, readError(st), transport.Timeout, "ping")
		if d := time.Since(begin); d != 20*time.Second {
			t.Errorf("dead after %v", d)
		}
	})
}

// Traffic is a sign of life: no ping is sent meanwhile.
func TestTrafficReplacesPings(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		p.respond(1, false, ":status", "200")
		for range 100 {
			time.Sleep(39 * time.Second) // of the bubble
			p.do(p.fr.WriteData(1, false, []byte("x")))
		}
		synctest.Wait()
		for len(p.frames) > 0 {
			if s := <-p.frames; s.typ == http2.FramePing {
				t.Fatal("a ping was sent")
			}
		}
		if st.Buffered() != 100 {
			t.Errorf("%d bytes buffered", st.Buffered())
		}
	})
}

// A peer whose socket takes nothing is dead, too.
func TestStuckWrite(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		resume := p.stop()
		defer resume()
		r.open("stuck")
		begin := time.Now()
		wantKind(t, readError(st), transport.Reset, "timeout")
		if d := time.Since(begin); d != 20*time.Second {
			t.Errorf("dead after %v", d)
		}
	})
}

func TestIdleConnectionIsClosed(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		go func() { // answers pings
			for s := range p.frames {
				switch s.typ {
				case http2.FramePing:
					_ = p.fr.WritePing(true, s.stamp)
				case http2.FrameGoAway:
					return
				}
			}
			t.Error("no GOAWAY before the end of the connection")
		}()
		time.Sleep(time.Hour) // of the bubble: an exchange that is idle keeps its connection
		if st.Buffered() != 0 {
			t.Fatal("the exchange failed")
		}
		st.Cancel()
		begin := time.Now()
		for {
			r.client.mu.RLock()
			n, pools := len(r.client.conns), len(r.client.pools)
			r.client.mu.RUnlock()
			if n == 0 {
				if pools != 0 {
					t.Error("the pool remains")
				}
				break
			}
			time.Sleep(time.Second)
		}
		if d := time.Since(begin); d < 5*time.Minute || d > 6*time.Minute {
			t.Errorf("closed after %v", d)
		}
	})
}

func TestFlowControlOfTheRequest(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p := make(chan *peer, 1)
		go func() { p <- r.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) }()
		st, err := r.tryOpen()
		if err != nil {
			t.Fatal(err)
		}
		peer := <-p
		written := make(chan error, 1)
		go func() { written <- errors.Join(st.Write([]byte("0123456789")), st.CloseWrite()) }()
		peer.want(http2.FrameHeaders)
		expect := func(data string) {
			t.Helper()
			if d := peer.want(http2.FrameData); d.data != data {
				t.Fatalf("got %q, want %q", d.data, data)
			}
		}
		peer.do(peer.fr.WriteWindowUpdate(1, 3))
		expect("012")
		peer.do(peer.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2}))
		expect("34")
		peer.do(peer.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})) // 2 below zero
		peer.do(peer.fr.WriteWindowUpdate(1, 2))
		synctest.Wait()
		if len(written) > 0 {
			t.Fatal("sent beyond the window")
		}
		peer.do(peer.fr.WriteWindowUpdate(1, 1))
		expect("5")
		peer.do(peer.fr.WriteWindowUpdate(1, 100))
		expect("6789")
		if err := <-written; err != nil {
			t.Fatal(err)
		}
	})
}

// The window of the connection is shared: whoever waits for it goes on when it opens.
func TestConnectionWindowOfTheRequest(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st1 := r.opened(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		st2 := r.open("")
		written := make(chan error, 2)
		for _, st := range []transport.Stream{st1, st2} {
			go func() { written <- errors.Join(st.Write(make([]byte, 200<<10)), st.CloseWrite()) }()
		}
		got, ended := 0, 0
		for ended < 2 {
			if got == initialWindow-len("start") {
				p.do(p.fr.WriteWindowUpdate(0, 1<<20))
			}
			d := p.want(http2.FrameData)
			if got += len(d.data); d.end() {
				ended++
			}
			if d.id == 1 && d.data == "start" {
				got -= len("start")
			}
		}
		if got != 400<<10 {
			t.Errorf("got %d bytes", got)
		}
		for range 2 {
			if err := <-written; err != nil {
				t.Error(err)
			}
		}
	})
}

// A writer that waits for room in the send buffer goes on when the socket takes some, without a word of the peer.
func TestSendBufferIsBounded(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 24})
		p.do(p.fr.WriteWindowUpdate(0, 1<<24))
		resume := p.stop()
		written := make(chan error, 1)
		const size = 4 << 20
		go func() { written <- st.Write(make([]byte, size)) }()
		synctest.Wait()
		if len(written) > 0 {
			t.Fatal("4 MiB were taken while the socket takes nothing")
		}
		for conn := range r.client.conns {
			if conn.mu.Lock(); len(conn.mu.out) > 2*r.client.cfg.SendBuffer {
				t.Errorf("%d bytes wait for the socket", len(conn.mu.out))
			}
			conn.mu.Unlock()
		}
		resume()
		begin := time.Now()
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		if time.Since(begin) != 0 {
			t.Error("the writer was woken by a timer")
		}
		got := 0
		for got < size {
			if d := p.want(http2.FrameData); d.data != "start" {
				got += len(d.data)
			}
		}
	})
}

func TestSettingsInMidFlight(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
		for range 3 { // header blocks stay decodable as the table shrinks and grows
			r.open("x")
			if h := p.want(http2.FrameHeaders); h.fields["content-type"] != benchHeader[0].Value {
				t.Fatalf("header is %v", h.fields)
			}
			p.do(p.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 100_000}))
			p.want(http2.FrameSettings)
		}
		p.do(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1<<24 - 1}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 24}))
		p.do(p.fr.WriteWindowUpdate(0, 1<<24))
		synctest.Wait() // the client has taken both
		if err := st.Write(make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
		d := p.want(http2.FrameData)
		for d.data == "x" {
			d = p.want(http2.FrameData)
		}
		if len(d.data) != maxSendFrame {
			t.Errorf("frame of %d bytes", len(d.data))
		}
	})
}

func TestInformationalAndTrailers(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		p.respond(1, false, ":status", "100")
		p.respond(1, false, ":status", "103", "link", "x")
		p.respond(1, false, ":status", "200", "content-length", "4", "a", "1", "a", "2")
		p.do(p.fr.WriteDataPadded(1, false, []byte("body"), make([]byte, 100)))
		p.respond(1, true, "grpc-status", "0")
		resp, err := st.Response()
		if err != nil || resp.Status != 200 || resp.Get("a") != "1" || len(resp.Header) != 3 {
			t.Fatalf("got %+v, %v", resp, err)
		}
		wantBody(t, st, "body")
		r.survives(p)
	})
}

func TestNotModifiedMayDeclareALength(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		p.respond(1, true, ":status", "304", "content-length", "100")
		wantBody(t, st, "")
	})
}

// What comes for an exchange that was cancelled is dropped, and its window is given back.
func TestLateFramesOfACanceledExchange(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, st := r.opened()
		st.Cancel()
		p.wantReset(1, http2.ErrCodeCancel)
		p.respond(1, false, ":status", "200", "x-indexed", "value")
		for range 2 * (5 << 20) / minMaxFrame {
			p.do(p.fr.WriteData(1, false, make([]byte, minMaxFrame)))
		}
		p.do(p.fr.WriteWindowUpdate(1, 5))
		p.do(p.fr.WriteRSTStream(1, http2.ErrCodeCancel))
		st = r.open("next")
		h := p.want(http2.FrameHeaders)
		p.respond(h.id, true, ":status", "200", "x-indexed", "value") // from the table that the dropped header filled
		resp, err := st.Response()
		if err != nil || resp.Get("x-indexed") != "value" {
			t.Fatalf("got %+v, %v", resp, err)
		}
	})
}

func TestManyCancelsAreNoFlood(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, _ := r.opened()
		for range 5000 {
			st := r.open("x")
			h := p.want(http2.FrameHeaders)
			st.Cancel()
			p.respond(h.id, false, ":status", "200")
			p.do(p.fr.WriteData(h.id, false, nil))
			p.do(p.fr.WriteWindowUpdate(h.id, 1))
			p.do(p.fr.WriteRSTStream(h.id, http2.ErrCodeCancel))
		}
		r.survives(p)
	})
}

// An exchange that is complete in both directions is not reset by the Cancel that must follow, however soon that comes.
func TestCancelAfterTheEnd(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, first := r.opened()
		for range 1000 {
			st := r.open("x")
			if err := st.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			h, _ := p.next(http2.FrameHeaders, http2.FrameRSTStream)
			if h.typ != http2.FrameHeaders {
				t.Fatalf("exchange %d was reset", h.id)
			}
			ended := make(chan error, 1)
			go func() {
				err := readError(st)
				st.Cancel()
				ended <- err
			}()
			p.answer(h.id, "")
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		first.Cancel()
		p.wantReset(1, http2.ErrCodeCancel) // and no other was
	})
}

func TestIdsRunOut(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		p, first := r.opened()
		for conn := range r.client.conns {
			conn.mu.Lock()
			conn.mu.nextID = maxStreamID
			conn.mu.Unlock()
		}
		last := r.open("last")
		if h := p.want(http2.FrameHeaders); h.id != maxStreamID {
			t.Fatalf("got stream %d", h.id)
		}
		_, st := r.opened() // on a new connection
		st.Cancel()
		first.Cancel()
		last.Cancel()
		p.wantGoAway(http2.ErrCodeNo)
	})
}

func TestClose(t *testing.T) {
	bubble(t, func(c *Config) { c.MaxConnsPerEndpoint = 1 }, func(t *testing.T, r *rig) {
		p, st := r.opened(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		waiting := make(chan error, 2)
		go func() {
			_, err := r.tryOpen()
			waiting <- err
		}()
		go func() {
			_, err := r.client.Open(t.Context(), parse(t, "http://other", false), transport.Request{Method: "GET", Path: "/"})
			waiting <- err
		}()
		synctest.Wait()
		<-r.peers // does not answer the preface
		if err := r.client.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wantKind(t, <-waiting, transport.Canceled, "closed")
		}
		wantKind(t, readError(st), transport.Canceled, "closed")
		p.wantGoAway(http2.ErrCodeNo)
		_, err := r.tryOpen()
		wantKind(t, err, transport.Canceled, "closed")
	})
}

func TestCloseEndsHTTP1(t *testing.T) {
	came := make(chan struct{})
	url := serveClear(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(came)
		<-r.Context().Done()
	}))
	c := newClient(t, nil)
	ep := parse(t, url, true)
	st, err := c.Open(t.Context(), ep, transport.Request{Method: "GET", Path: "/discover"})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-came
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, readError(st), transport.Canceled, "closed")
	err = discover(c, ep)
	wantKind(t, err, transport.Canceled, "closed")
}

func TestMalformedRequestIsRefused(t *testing.T) {
	c := newClient(t, nil)
	for _, f := range []transport.Field{{Name: "Upper", Value: "x"}, {Name: "", Value: "x"}, {Name: "a", Value: "b\r\nc: d"}, {Name: "a b", Value: "x"}, {Name: ":path", Value: "/"}} {
		_, err := c.Open(t.Context(), parse(t, "http://h", false), transport.Request{Method: "GET", Path: "/", Header: []transport.Field{f}})
		wantKind(t, err, transport.Protocol, "malformed")
	}
	_, err := c.Open(t.Context(), transport.LambdaFunction("arn", "", false), transport.Request{Method: "GET", Path: "/"})
	wantKind(t, err, transport.Protocol, "no HTTP endpoint")
}

func TestConfigIsValidated(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"connect":        func(c *Config) { c.ConnectTimeout = 0 },
		"idle":           func(c *Config) { c.IdleTimeout = -1 },
		"streams":        func(c *Config) { c.MaxStreamsPerConn = 0 },
		"stream window":  func(c *Config) { c.StreamWindow = 1000 },
		"too large":      func(c *Config) { c.ConnWindow = 1 << 31 },
		"small buffer":   func(c *Config) { c.ConnBuffer = c.StreamWindow - 1 },
		"no dial policy": func(c *Config) { c.DialControl = nil },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if c, err := New(cfg, nil); err == nil {
			_ = c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}
