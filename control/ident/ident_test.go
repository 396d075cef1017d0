package ident

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
)

// vectors are ids that the real server made, or that follow from them.
type vectors struct {
	Invocations []struct {
		ID    string  `json:"invocation_id"`
		Bytes string  `json:"bytes_hex"`
		Seed  string  `json:"random_seed"`
		UUID  string  `json:"uuid_hex"`
		Kind  string  `json:"kind"`
		Key   string  `json:"partition_key"`
		Bkt   *uint64 `json:"bucket"`
		Input struct {
			Service        string  `json:"service"`
			Handler        string  `json:"handler"`
			Key            *string `json:"key"`
			IdempotencyKey *string `json:"idempotency_key"`
			Scope          *string `json:"scope"`
		} `json:"input"`
	} `json:"invocation_ids"`
	Keys []struct {
		Key string `json:"key"`
		Hex string `json:"hex"`
	} `json:"partition_key_of_key"`
	Buckets []struct {
		Service string `json:"service"`
		Bucket  uint64 `json:"bucket"`
		Hex     string `json:"hex"`
	} `json:"partition_key_of_service_bucket"`
	Deployments []struct {
		ID   string `json:"deployment_id"`
		ULID string `json:"ulid_bytes_hex"`
	} `json:"deployment_ids"`
	Awakeables []struct {
		ID         string `json:"awakeable_id"`
		Invocation string `json:"invocation_id"`
		Signal     uint32 `json:"signal_index"`
	} `json:"awakeables"`
}

func load(t *testing.T) (v vectors) {
	b, err := os.ReadFile("testdata/ids.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Invocations) == 0 || len(v.Keys) == 0 || len(v.Buckets) == 0 || len(v.Deployments) == 0 || len(v.Awakeables) == 0 {
		t.Fatal("the vectors are incomplete")
	}
	return v
}

func TestInvocationVectors(t *testing.T) {
	derived := 0
	for _, c := range load(t).Invocations {
		id, err := ParseInvocationID(c.ID)
		if err != nil {
			t.Errorf("parse %s: %v", c.ID, err)
			continue
		}
		if got := hex.EncodeToString(id[:]); got != c.Bytes {
			t.Errorf("%s: bytes %s, want %s", c.ID, got, c.Bytes)
		}
		if id.String() != c.ID {
			t.Errorf("%s prints as %s", c.ID, id)
		}
		if got := strconv.FormatUint(RandomSeed(id), 10); c.Seed != "" && got != c.Seed {
			t.Errorf("%s: seed %s, want %s", c.ID, got, c.Seed)
		}
		if c.Input.Service == "" || c.Input.Scope != nil { // scoped targets are not supported
			continue
		}
		target := Target{Service: c.Input.Service, Handler: c.Input.Handler, IdempotencyKey: c.Input.IdempotencyKey}
		if c.Input.Key != nil {
			target.Key, target.Keyed = *c.Input.Key, true
			target.WorkflowRun = strings.Contains(c.Kind, "workflow")
		}
		r := Random{ULID: id.UUID()}
		if c.Bkt != nil {
			r.Bucket = *c.Bkt
		}
		if got := Invocation(target, r); got != id {
			t.Errorf("%s (%s): derived %s", c.ID, c.Kind, got)
		}
		derived++
	}
	if derived < 6 {
		t.Errorf("only %d ids were derived", derived)
	}
}

func TestPartitionKeyVectors(t *testing.T) {
	v := load(t)
	for _, c := range v.Keys {
		if got := strconv.FormatUint(uint64(KeyPartition(c.Key)), 16); strings.TrimLeft(c.Hex, "0") != got {
			t.Errorf("key %q: %s, want %s", c.Key, got, c.Hex)
		}
	}
	for _, c := range v.Buckets {
		if got := strconv.FormatUint(uint64(BucketPartition(c.Service, c.Bucket)), 16); strings.TrimLeft(c.Hex, "0") != got {
			t.Errorf("bucket %d of %s: %s, want %s", c.Bucket, c.Service, got, c.Hex)
		}
	}
}

func TestDeploymentVectors(t *testing.T) {
	for _, c := range load(t).Deployments {
		id, err := ParseDeploymentID(c.ID)
		if err != nil || hex.EncodeToString(id[:]) != c.ULID || id.String() != c.ID {
			t.Errorf("%s: %x, printed %s, %v", c.ID, id[:], id, err)
		}
	}
}

func TestAwakeableVectors(t *testing.T) {
	for _, c := range load(t).Awakeables {
		for _, form := range []string{c.ID, c.ID + "==", c.ID + "="} {
			a, err := ParseAwakeable(form)
			if err != nil || a.Invocation.String() != c.Invocation || a.Signal != c.Signal || a.Old || a.String() != c.ID {
				t.Errorf("%s: %+v, %v", form, a, err)
			}
		}
		old, err := ParseAwakeable("prom" + strings.TrimPrefix(c.ID, "sign"))
		if err != nil || !old.Old {
			t.Errorf("old form of %s: %+v, %v", c.ID, old, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	for in, want := range map[string]error{
		"":                                       ErrBadFormat,
		"nonsense":                               ErrBadFormat,
		"inv_":                                   ErrBadFormat,
		"xyz_1aaa":                               ErrBadFormat,
		"inv_nonsense":                           ErrCodec,
		"inv_1x":                                 ErrLength,
		"dp_1aaa":                                ErrType,
		"inv_1aaaaaaaaaaa000000000000000000000-": ErrDigits,
		"inv_1aaaaaaaaaaaZZZZZZZZZZZZZZZZZZZZZZ": ErrDigits, // over 128 bits
		"inv_1ZZZZZZZZZZZ0000000000000000000000": ErrDigits, // over 64 bits
	} {
		if _, err := ParseInvocationID(in); !errors.Is(err, want) {
			t.Errorf("invocation id %q: %v, want %v", in, err, want)
		}
	}
	for in, want := range map[string]error{
		"bad": ErrBadFormat, "sign_": ErrBadFormat, "inv_1aaa": ErrBadFormat, "sign_2aaa": ErrCodec, "sign_1!!!": ErrBadFormat, "sign_1AAAA": ErrBadFormat,
	} {
		if _, err := ParseAwakeable(in); !errors.Is(err, want) {
			t.Errorf("awakeable %q: %v, want %v", in, err, want)
		}
	}
	if _, err := InvocationIDFromBytes(make([]byte, 23)); err == nil {
		t.Error("23 bytes were taken for an invocation id")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("inv_12BbmfqHZ9cR0Uk5X6HJL2aSh1BUEzqNEQ")
	f.Add("dp_127ZEDk7K2u4Rqffzkbe5sB")
	f.Add("sign_1346YRn8WZVw6N44idZCnF_XEnJa1PJQoAAAAEQ")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseInvocationID(s); err == nil && id.String() != s {
			t.Errorf("%q reads as %s", s, id)
		}
		if id, err := ParseDeploymentID(s); err == nil && id.String() != s {
			t.Errorf("%q reads as %s", s, id)
		}
		if a, err := ParseAwakeable(s); err == nil {
			if b, err := ParseAwakeable(a.String()); err != nil || b != a {
				t.Errorf("%q reads as %s, which reads as %s: %v", s, a, b, err)
			}
		}
	})
}

func BenchmarkInvocationID(b *testing.B) {
	key := "0123456789"
	b.ReportAllocs()
	for b.Loop() {
		id := Invocation(Target{Service: "Greeter", Handler: "greet", IdempotencyKey: &key}, Random{})
		if len(id.String()) != invocationLen {
			b.Fatal("length")
		}
	}
}
