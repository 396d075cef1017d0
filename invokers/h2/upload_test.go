package h2

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

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
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	st, err := c.Open(ctx, parse(t, url, false), transport.Request{Method: "POST", Path: "/"})
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
