package model

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// diagnosis is what the doctor of a server says of an invocation.
type diagnosis struct {
	Status, Problem, Needs string
	Waits                  []struct{ Reason, Text, Invocation string }
	Chain                  []struct{ ID, Target, Status, Text string }
}

func (b *bench) diagnose(t *testing.T, id string) (d diagnosis) {
	t.Helper()
	resp, err := b.driver.Client.Get(b.server.Admin() + "/perdure/doctor/" + id)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&d); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("ask the doctor: %s, %v", resp.Status, err)
	}
	return d
}

// send sends a body one-way and returns the invocation.
func (b *bench) send(t *testing.T, to *Target, body *Body, query string) string {
	t.Helper()
	path := "/" + to.name() + "/"
	if to.Key != "" {
		path += to.Key + "/"
	}
	status, out, err := b.driver.ask(t.Context(), http.MethodPost, path+to.Handler+"/send"+query, &Program{Entry: *to, Body: body})
	var sent struct{ InvocationID string }
	if err != nil || status/100 != 2 || json.Unmarshal(out, &sent) != nil {
		t.Fatalf("send: status %d, %s, %v", status, out, err)
	}
	return sent.InvocationID
}

// until asks the doctor until it says something, or fails with what it said last.
func (b *bench) until(t *testing.T, id string, says func(diagnosis) bool) {
	t.Helper()
	var last diagnosis
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); pause(t.Context(), 50*time.Millisecond) {
		if last = b.diagnose(t, id); says(last) {
			return
		}
	}
	t.Fatalf("the doctor still says of %s: %+v", id, last)
}

func waitsFor(reason, text string) func(diagnosis) bool {
	return func(d diagnosis) bool {
		return d.Problem == "" && len(d.Waits) > 0 && d.Waits[0].Reason == reason && strings.Contains(d.Waits[0].Text, text)
	}
}

// TestDoctor lets handlers wait for all that there is, and has the doctor say for what. An object that calls itself waits for
// ever, which is found, also by those behind it, and cured by a kill.
func TestDoctor(t *testing.T) {
	t.Parallel()
	b := open(t, map[string]string{"DEFAULT_NUM_PARTITIONS": "3"})
	if b.other {
		t.Skip("only Perdure has a doctor")
	}
	susp := func(service, handler, key string) *Target { return &Target{"Susp", service, handler, key} }
	n := 0
	body := func(ops ...Op) *Body {
		n++
		return &Body{ID: fmt.Sprint("doctor-", n), Ops: ops}
	}
	sleeper := b.send(t, susp(plain, work, ""), body(Op{Do: opSleep, Ms: 3_600_000}), "")
	delayed := b.send(t, susp(plain, work, ""), body(Op{Do: opSleep, Ms: 1}), "?delay=1h")
	holder := b.send(t, susp(objects, work, "k"), body(Op{Do: opBlock}), "")
	b.until(t, holder, waitsFor("signal", "awakeable sign_1"))
	second := b.send(t, susp(objects, work, "k"), body(), "")
	third := b.send(t, susp(objects, work, "k"), body(), "")
	caller := b.send(t, susp(plain, work, ""), body(Op{Do: opCall, To: susp(plain, work, ""), Body: body(Op{Do: opSleep, Ms: 3_600_000})}), "")
	flowing := b.send(t, susp(flow, run, "f"), body(Op{Do: opPromise, Name: "p"}), "")
	crashing := b.send(t, susp(plain, work, ""), body(Op{Do: opCrash, N: 1 << 30}), "")
	racing := b.send(t, susp(plain, work, ""), body(Op{Do: opTimer, Ms: 3_600_000}, Op{Do: opAwakeable}, Op{Do: opFirst, Of: []int{0, 1}}), "")

	b.until(t, sleeper, waitsFor("timer", "its sleep until"))
	b.until(t, delayed, waitsFor("timer", "its delay until"))
	b.until(t, second, waitsFor("lock", "held by "+holder))
	b.until(t, third, func(d diagnosis) bool {
		return waitsFor("lock", "with 1 before it")(d) && len(d.Chain) == 1 && d.Chain[0].ID == holder
	})
	b.until(t, caller, func(d diagnosis) bool {
		return waitsFor("invocation", "its call of SuspPlain/work")(d) && len(d.Chain) == 1 && strings.Contains(d.Chain[0].Text, "its sleep until")
	})
	b.until(t, flowing, waitsFor("promise", `the promise "p" of workflow SuspFlow/f`))
	b.until(t, crashing, waitsFor("retry", "fails"))
	b.until(t, racing, func(d diagnosis) bool { return len(d.Waits) == 2 && d.Needs == "it goes on with the first of them" })
	b.checkup(t, false)

	self := b.send(t, susp(objects, work, "self"), body(Op{Do: opCall, To: susp(objects, work, "self"), Body: body()}), "")
	behind := b.send(t, susp(objects, work, "self"), body(), "")
	for _, id := range []string{self, behind} {
		b.until(t, id, func(d diagnosis) bool { return strings.HasPrefix(d.Problem, "deadlock: it waits for ") })
	}
	req, err := http.NewRequest(http.MethodPatch, b.server.Admin()+"/invocations/"+self+"/kill", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.driver.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	b.until(t, behind, func(d diagnosis) bool { return d.Status == "completed" })
	b.checkup(t, false)
}
