package main

import (
	"strings"
	"testing"
)

const inspected = `{"id":"inv_1","target":"Counter/k/add","status":"backing-off","invoked_by":"service","invoked_by_id":"inv_0","created_at":"2026-11-23T05:01:00.274000000Z",
 "modified_at":"2026-11-23T05:01:01.000000000Z","deployment":"dp_1","protocol_version":6,"attempts":3,"next_attempt_at":"2026-11-23T05:02:00.000000000Z",
 "last_failure":{"code":500,"error_code":"RT0007","message":"boom","stacktrace":"at a\nat b","related_command":{"index":2,"type":"Run","name":"step"}},
 "waiting_for":{"combinator":"FirstCompleted","completions":[1],"signals":[1,17],"named_signals":["go"],"nested":[{"combinator":"AllCompleted","completions":[2]}]},
 "journal_size":1,"journal":[{"index":0,"type":"Command: Input","appended_at":"2026-11-23T05:01:00.274000000Z","size":12}],
 "events":[{"type":"TransientError","at":"2026-11-23T05:01:00.300000000Z","after_entry":0,"failure":{"code":500,"error_code":"RT0007","message":"boom\nmore"}}]}`

func TestGetInvocation(t *testing.T) {
	env, last := fakeServer(t, 200, nil, inspected)
	code, out, errs := exec(t, env, "", "invocations", "get", "inv_1")
	want := `id              inv_1
target          Counter/k/add
status          backing-off
invoked by      service inv_0
created         2026-11-23T05:01:00.274000000Z
modified        2026-11-23T05:01:01.000000000Z
deployment      dp_1 (protocol V6)
attempts        3
next attempt    2026-11-23T05:02:00.000000000Z
waits for       FirstCompleted(completion 1, cancel, signal 17, signal "go", AllCompleted(completion 2))
last failure    RT0007 [500] boom (at command 2 Run "step")
    at a
    at b

ENTRY  TYPE            NAME  BYTES  APPENDED
0      Command: Input        12     2026-11-23T05:01:00.274000000Z

EVENT                           TYPE            AFTER ENTRY  
2026-11-23T05:01:00.300000000Z  TransientError  0            RT0007 [500] boom
`
	if code != 0 || out != want {
		t.Errorf("exit %d %s\n%s\nwant\n%s", code, errs, out, want)
	}
	if r := last(); r.uri != "/perdure/invocations/inv_1" || r.method != "GET" {
		t.Errorf("asked for %s %s", r.method, r.uri)
	}
	if code, out, _ := exec(t, env, "", "invocations", "get", "inv_1", "--json"); code != 0 || !strings.Contains(out, `"error_code": "RT0007"`) {
		t.Errorf("exit %d: %s", code, out)
	}
}

func TestGetUnknownInvocation(t *testing.T) {
	env, _ := fakeServer(t, 404, nil, `{"message":"The requested invocation 'inv_1' does not exist","restate_code":null}`)
	if code, _, errs := exec(t, env, "", "invocations", "get", "inv_1"); code != 1 || !strings.Contains(errs, "does not exist (HTTP 404)") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestListInvocations(t *testing.T) {
	env, last := fakeServer(t, 200, nil, `{"invocations":[`+inspected+`,
		{"id":"inv_2","target":"S/h","status":"completed","created_at":"2026-11-23T05:00:00.000000000Z","result":{"result":"failure","code":409,"message":"killed"}},
		{"id":"inv_3","target":"S/h","status":"scheduled","created_at":"2026-11-23T05:00:00.000000000Z","scheduled_for":"2027-01-01T00:00:00.000000000Z"}]}`)
	code, out, errs := exec(t, env, "", "invocations", "list", "--status", "paused,backing-off", "--service", "S", "--handler", "h", "--key", "k", "--deployment", "dp_1", "--limit", "7")
	want := `ID     TARGET         STATUS       CREATED               
inv_1  Counter/k/add  backing-off  2026-11-23T05:01:00Z  RT0007 [500] boom (at command 2 Run "step")
inv_2  S/h            completed    2026-11-23T05:00:00Z  [409] killed
inv_3  S/h            scheduled    2026-11-23T05:00:00Z  due 2027-01-01T00:00:00Z
`
	if code != 0 || out != want {
		t.Errorf("exit %d %s\n%s", code, errs, out)
	}
	if r := last(); r.uri != "/perdure/invocations?deployment=dp_1&handler=h&key=k&limit=7&service=S&status=paused%2Cbacking-off" {
		t.Errorf("asked for %s", r.uri)
	}
}
