package services

import (
	"context"
	"encoding/json"
	"net/http"
	"sort"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

type described struct {
	Name     string
	Ty       string
	Handlers []struct{ Name, Ty string }
}

func discover(t *testing.T, url string, h2c bool) []string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/discover", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.restate.endpointmanifest.v4+json")
	var protos http.Protocols
	protos.SetHTTP1(!h2c)
	protos.SetUnencryptedHTTP2(h2c)
	tr := &http.Transport{Protocols: &protos}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var m struct {
		ProtocolMode string
		Services     []described
	}
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		t.Fatal(err)
	}
	out := []string{m.ProtocolMode}
	for _, s := range m.Services {
		switch s.Name {
		case "XGolang", "XReflected", "XTypeScript":
			continue // about what one SDK has and the other has not
		}
		for _, h := range s.Handlers {
			ty := h.Ty
			if ty == "" { // the SDKs differ in spelling out what is the default of the service's type
				ty = map[string]string{"VIRTUAL_OBJECT": "EXCLUSIVE", "WORKFLOW": "SHARED"}[s.Ty]
			}
			out = append(out, s.Ty+" "+s.Name+"/"+h.Name+" "+ty)
		}
	}
	sort.Strings(out)
	return out
}

// TestBothLanguagesOfferTheSame: a test that runs on one set must find the same handlers in the other.
func TestBothLanguagesOfferTheSame(t *testing.T) {
	if why := TypeScriptMissing(); why != "" {
		t.Skipf("the TypeScript services need node and npm: %s", why)
	}
	for _, rr := range []bool{false, true} {
		ts, err := StartTypeScript(t.Context(), "X", rr)
		if err != nil {
			t.Fatal(err)
		}
		defer ts.Close()
		g, err := Start("127.0.0.1:0", Options{Prefix: "X", RequestResponse: rr})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		one, two := strings.Join(discover(t, g.URL, true), "\n"), strings.Join(discover(t, ts.URL, true), "\n")
		if one != two {
			t.Errorf("Go offers\n%s\nTypeScript offers\n%s", one, two)
		}
	}
}

func TestStartOverHTTP1(t *testing.T) {
	s, err := Start("127.0.0.1:0", Options{RequestResponse: true, HTTP1: true})
	if err != nil {
		t.Fatal(err)
	}
	got := discover(t, s.URL, false)
	if got[0] != "REQUEST_RESPONSE" {
		t.Errorf("mode %s", got[0])
	}
	for _, n := range Names {
		found := false
		for _, g := range got {
			found = found || strings.Contains(g, " "+n+"/")
		}
		if !found {
			t.Errorf("service %s is not offered", n)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestMemory(t *testing.T) {
	m := NewMemory()
	if n := m.Count("a") + m.Count("a"); n != 3 || m.Counted("a") != 2 || m.Counted("b") != 0 {
		t.Errorf("counts: %d, %d, %d", n, m.Counted("a"), m.Counted("b"))
	}
	passed := make(chan error, 1)
	go func() { passed <- m.Pass(t.Context(), "g") }()
	if m.IsOpen("g") {
		t.Error("a new gate is open")
	}
	m.Open("g")
	m.Open("g")
	if err := <-passed; err != nil || !m.IsOpen("g") {
		t.Errorf("pass: %v, open %v", err, m.IsOpen("g"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Pass(ctx, "closed"); err == nil {
		t.Error("passed a closed gate")
	}
	if m.Await(ctx, func() bool { return false }) {
		t.Error("what never happens was awaited")
	}
	happened := make(chan bool, 1)
	go func() { happened <- m.Await(t.Context(), func() bool { return len(m.Lines("l")) == 2 }) }()
	m.Note("l", "1")
	m.Note("l", "2")
	if !<-happened {
		t.Error("two lines were not awaited")
	}
	m.Release()
	if err := m.Pass(ctx, "never asked for before"); err != nil && !m.IsOpen("never asked for before") {
		t.Error("a gate is closed after Release")
	}
}
