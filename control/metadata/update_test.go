package metadata

import (
	"fmt"
	"testing"
)

// TestUpdateRemembersWritesOnce: a store that loses answers for hours must not fill the memory.
func TestUpdateRemembersWritesOnce(t *testing.T) {
	m := NewMemory()
	tries := 0
	m.SetFault(func(c Call) Fault {
		if c.Method == "Put" {
			return Fault{Effect: LoseRequest}
		}
		return Fault{}
	})
	u := updater{store: m, key: "k", next: func(Value, bool) ([]byte, error) {
		tries++
		return fmt.Appendf(nil, "value %d", tries/50), nil
	}}
	for range 100 {
		if _, err := u.try(t.Context()); err == nil {
			t.Fatal("a lost write succeeded")
		}
	}
	if len(u.sent) != 3 {
		t.Errorf("%d writes are remembered after 100 tries with 3 values", len(u.sent))
	}
	m.SetFault(func(Call) Fault { return Fault{} })
	if _, err := m.Put(t.Context(), "k", []byte("value 1"), Absent); err != nil { // a late one arrives
		t.Fatal(err)
	}
	if v, err := u.try(t.Context()); err != nil || string(v.Data) != "value 1" || v.Version != 1 {
		t.Errorf("update found %q at %d, %v; want its own write", v.Data, v.Version, err)
	}
}
