package main

import (
	"encoding/json"
	"net/http/httptest"
	"reflect"
	"testing"
)

// The names are part of the README and of the demo.
func TestManifestNamesTheHandlers(t *testing.T) {
	h, err := endpoint().Handler()
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest("GET", "/discover", nil)
	req.Header.Set("Accept", "application/vnd.restate.endpointmanifest.v3+json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	var manifest struct {
		Services []struct {
			Name, Ty string
			Handlers []struct{ Name, Ty string }
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &manifest); err != nil {
		t.Fatalf("status %d, %s: %v", w.Code, w.Body, err)
	}
	got := map[string]string{}
	for _, s := range manifest.Services {
		got[s.Name] = s.Ty
		for _, h := range s.Handlers {
			got[s.Name+"/"+h.Name] = h.Ty
		}
	}
	want := map[string]string{"Greeter": "SERVICE", "Greeter/Greet": "", "Counter": "VIRTUAL_OBJECT", "Counter/Add": "EXCLUSIVE", "Counter/Get": "SHARED"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
