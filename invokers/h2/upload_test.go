package h2

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"perdure/invokers/transport"
)

// A service that reads a big request in small pieces opens the windows as often, and that is no flood. The server of
// net/http does so once its window is used up.
func TestManyWindowUpdatesForABigRequest(t *testing.T) {
	const size = 8 << 20
	url := serveClear(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 64)
		n := 0
		for {
			m, err := r.Body.Read(buf)
			n += m
			if err != nil {
				break
			}
		}
		_, _ = io.WriteString(w, itoa(n))
	}))
	c := newClient(t, nil)
	st, err := c.Open(t.Context(), parse(t, url, false), transport.Request{Method: "POST", Path: "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Cancel()
	if err := st.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantBody(t, st, itoa(size))
}

// A header that is too long for the service, as with an object's key of megabytes, fails its exchange and not the connection
// that others use.
func TestTooLongHeaderFailsOnlyItsExchange(t *testing.T) {
	for _, c := range []struct {
		name     string
		settings []http2.Setting
		key      int
		ok       bool
	}{
		{"within the limit", []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: 10_000}}, 9_000, true},
		{"above the service's limit", []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: 10_000}}, 10_000, false},
		{"above our limit", nil, maxSendHeader, false},
		{"above our limit, which is lower", []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: 1<<32 - 1}}, maxSendHeader, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				p, other := r.opened(c.settings...)
				st, err := r.client.Open(t.Context(), r.ep, transport.Request{
					Method: "POST", Path: "/", Header: []transport.Field{{Name: "x-key", Value: strings.Repeat("k", c.key), NoIndex: true}},
				})
				if err != nil {
					t.Fatal(err)
				}
				defer st.Cancel()
				if err := st.Write([]byte("x")); (err == nil) != c.ok {
					t.Errorf("write: %v", err)
				}
				if !c.ok {
					_, err := st.Response()
					wantKind(t, err, transport.Protocol, "key of the object")
				}
				p.answer(1, "still here")
				wantBody(t, other, "still here")
			})
		})
	}
}
