package scripted

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"perdure/integration/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

func startEndpoint(t *testing.T) (*Endpoint, *http.Client) {
	t.Helper()
	e, err := Start(false)
	if err != nil {
		t.Fatal(err)
	}
	var protos http.Protocols
	protos.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protos}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
	return e, &http.Client{Transport: tr}
}

// attempt opens an attempt as a server does and returns the request's body to write to.
func attempt(t *testing.T, e *Endpoint, c *http.Client, path, id string) (*io.PipeWriter, func() *http.Response) {
	t.Helper()
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", e.URL+path, pr)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("x-restate-invocation-id", id)
	req.Header.Set("Accept", ContentType)
	resp := make(chan *http.Response, 1)
	go func() {
		r, err := c.Do(req)
		if err != nil {
			t.Error(err)
		}
		resp <- r
	}()
	return pw, func() *http.Response { return <-resp }
}

func TestAttemptIsReadAndAnswered(t *testing.T) {
	e, c := startEndpoint(t)
	e.Handle("S", "h", func(a *Attempt) {
		f := a.Await(wire.RunCompletion)
		if f == nil || a.Number != 1 || !a.Replayed(wire.Sleep) || a.Replayed(wire.Call) {
			a.Send(Fail(500, "unexpected"))
			return
		}
		a.Send(Output(string(a.Input())+string(f.Body)), End())
		_, err := a.Next()
		if err == io.EOF {
			a.Send(Suspend(300))
		}
	})
	body, response := attempt(t, e, c, "/any/path/invoke/S/h", "inv_1")
	var b []byte
	b = wire.Frame{Type: wire.Start, Body: wire.AppendUint(nil, 3, 2)}.Append(b)
	b = wire.Frame{Type: wire.Input, Body: wire.AppendValue(nil, 14, []byte("in"))}.Append(b)
	b = wire.Frame{Type: wire.Sleep}.Append(b)
	b = wire.Frame{Type: wire.CallCompletion}.Append(b)
	b = wire.Frame{Type: wire.RunCompletion, Body: []byte("!")}.Append(b)
	if _, err := body.Write(b); err != nil {
		t.Fatal(err)
	}
	resp := response()
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != ContentType {
		t.Errorf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	f, err := wire.ReadFrame(resp.Body)
	if err != nil || string(wire.Content(f.Body, 14)) != "in!" {
		t.Fatalf("first frame %v, %v", f, err)
	}
	if f, err = wire.ReadFrame(resp.Body); err != nil || f.Type != wire.End {
		t.Fatalf("second frame %v, %v", f, err)
	}
	body.Close()
	f, err = wire.ReadFrame(resp.Body)
	if want := []byte{0x0a, 2, 0xac, 2, 0x12, 1, 1}; err != nil || !bytes.Equal(f.Body, want) {
		t.Fatalf("suspension %v, %v, want %x", f, err, want)
	}
	if _, err := wire.ReadFrame(resp.Body); err != io.EOF {
		t.Errorf("after the script: %v", err)
	}
	if e.Attempts("inv_1") != 1 || e.Attempts("inv_2") != 0 {
		t.Errorf("attempts %d, %d", e.Attempts("inv_1"), e.Attempts("inv_2"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := e.AwaitAttempts(ctx, "inv_1", 1); err != nil {
		t.Error(err)
	}
	cancel()
	if err := e.AwaitAttempts(ctx, "inv_1", 2); err == nil {
		t.Error("an attempt that never was is there")
	}
}

func TestDiscovery(t *testing.T) {
	e, c := startEndpoint(t)
	get := func() (*http.Response, string) {
		resp, err := c.Get(e.URL + "/p/discover")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	m := Manifest("BIDI_STREAM", map[string]any{"maxProtocolVersion": 6, "minProtocolVersion": nil},
		Service{Name: "S", Extra: map[string]any{"ingressPrivate": true}, Handlers: []Handler{{Name: "h", Type: "SHARED", Extra: map[string]any{"documentation": "d"}}}})
	var got, want any
	if err := json.Unmarshal([]byte(m), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"protocolMode":"BIDI_STREAM","maxProtocolVersion":6,"services":[{"name":"S","ty":"SERVICE","ingressPrivate":true,
		"handlers":[{"name":"h","ty":"SHARED","documentation":"d"}]}]}`), &want); err != nil {
		t.Fatal(err)
	}
	if a, b := mustJSON(t, got), mustJSON(t, want); a != b {
		t.Errorf("manifest %s, want %s", a, b)
	}
	e.Discover(Discovery{Body: m, Header: http.Header{"X-A": {"1"}}})
	if resp, body := get(); resp.StatusCode != 200 || resp.Header.Get("Content-Type") != ManifestType || resp.Header.Get("X-A") != "1" || body != m {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
	e.Discover(Discovery{Status: 503, ContentType: "text/plain"})
	if resp, _ := get(); resp.StatusCode != 503 || resp.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	if d := e.Discoveries(); len(d) != 2 || d[0].URL.Path != "/p/discover" {
		t.Errorf("discoveries %v", d)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
