package ident

import "testing"

func TestWorkedExamples(t *testing.T) {
	ik := "idem-1"
	vi := "vi1"
	for _, c := range []struct {
		t    Target
		id   string
		seed uint64
	}{
		{Target{Service: "Svc", Handler: "greet", IdempotencyKey: &ik}, "inv_12BbmfqHZ9cR0Uk5X6HJL2aSh1BUEzqNEQ", 11297809047793788901},
		{Target{Service: "Counter", Keyed: true, Key: "vk", Handler: "add", IdempotencyKey: &vi}, "inv_15PfmMdSyug87D7OJUjeFntlmwU5ind3fs", 6651005344306765062},
		{Target{Service: "Wf", Keyed: true, Key: "w1", Handler: "run", WorkflowRun: true}, "inv_12kpUQONmeFb2WqsVOkAjH4phS34cOyIC8", 2819727852034133028},
	} {
		id := Invocation(c.t, Random{})
		if id.String() != c.id {
			t.Errorf("%+v: id %s, want %s", c.t, id, c.id)
		}
		if back, err := ParseInvocationID(c.id); err != nil || back != id {
			t.Errorf("parse %s: %v", c.id, err)
		}
		if s := RandomSeed(id); s != c.seed {
			t.Errorf("%s: seed %d, want %d", id, s, c.seed)
		}
	}
	if k := BucketPartition("Svc", 20); k != 0x4215118d9d810386 {
		t.Errorf("bucket 20: %x", k)
	}
	dp, err := ParseDeploymentID("dp_127ZEDk7K2u4Rqffzkbe5sB")
	if err != nil || dp.String() != "dp_127ZEDk7K2u4Rqffzkbe5sB" || dp[0] != 0x01 || dp[15] != 0x45 {
		t.Errorf("deployment id: %v %x", err, dp)
	}
	a, err := ParseAwakeable("sign_1346YRn8WZVw6N44idZCnF_XEnJa1PJQoAAAAEQ")
	if err != nil || a.Invocation.String() != "inv_17VOzJQpUker1ezr8iVpis20C3MtD6A9uO" || a.Signal != 17 {
		t.Errorf("awakeable: %v %+v", err, a)
	}
}
