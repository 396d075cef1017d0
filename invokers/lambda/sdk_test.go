//go:build !race

package lambda

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"

	"perdure/invokers/transport"
)

// TestWithSDK has the Go SDK run as the function. The SDK compiles its core when it is first used, which takes the race
// detector half a minute and finds no race of ours; so this test runs without it.
func TestWithSDK(t *testing.T) {
	service := restate.NewService("L").Handler("greet", restate.NewServiceHandler(func(_ restate.Context, name string) (string, error) {
		return "hi " + name, nil
	}))
	handler, err := server.NewRestate().Bind(service).LambdaHandler()
	if err != nil {
		t.Fatal(err)
	}
	f := newFakeAPI(t, func(w http.ResponseWriter, r *http.Request) {
		var e server.LambdaRequest
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		out, err := handler(r.Context(), e)
		if err != nil {
			t.Error(err)
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			t.Error(err)
		}
	})
	c := newClient(t, f.config())
	ep := transport.LambdaFunction(testARN, "", false)
	st, err := c.Open(t.Context(), ep, transport.Request{Method: "GET", Path: "/discover", Header: []transport.Field{{Name: "accept", Value: "application/vnd.restate.endpointmanifest.v3+json"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Cancel()
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := st.Response()
	if err != nil || resp.Get("content-type") != "application/vnd.restate.endpointmanifest.v3+json" {
		t.Fatalf("got %+v, %v", resp, err)
	}
	if body, err := io.ReadAll(st); err != nil || !bytes.Contains(body, []byte(`"REQUEST_RESPONSE"`)) {
		t.Errorf("got %s, %v", body, err)
	}

	_, req, raw := loadVector(t, "lambda-02-invoke").request(t)
	st, err = c.Open(t.Context(), ep, req)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Cancel()
	if err := errors.Join(st.Write(raw), st.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(st); err != nil || !bytes.Contains(body, []byte(`"hi lam"`)) {
		t.Errorf("got %q, %v", body, err)
	}
}
